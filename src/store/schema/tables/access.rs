//! Who may call, and how much.

/// The keys.
pub(crate) mod api_key {
    use sea_orm::entity::prelude::*;

    /// One key. Of its secret only the hash is kept.
    #[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "api_key")]
    pub(crate) struct Model {
        /// How the key begins; no secret.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        /// The tenant.
        pub workspace_id: i32,
        /// Unique within the tenant; the history names it.
        pub name: String,
        /// SHA-256 of its secret, in hex.
        pub secret_sha256: String,
        /// Names separated by commas.
        pub permissions: String,
        /// Networks separated by commas; empty means anywhere.
        pub allowlist: String,
        /// When it was made.
        pub created_ms: i64,
        /// When it stops working by itself.
        pub expires_ms: Option<i64>,
        /// When it was made to stop.
        pub revoked_ms: Option<i64>,
        /// When it was last used, to about a minute.
        pub last_used_ms: Option<i64>,
    }

    // By hand, without the hash.
    impl std::fmt::Debug for Model {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("api_key")
                .field("id", &self.id)
                .finish_non_exhaustive()
        }
    }

    /// None: rows are found by key.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The quotas of tenants that differ from the usual ones.
pub(crate) mod workspace_limit {
    use sea_orm::entity::prelude::*;

    /// One quota.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "workspace_limit")]
    pub(crate) struct Model {
        /// The tenant.
        #[sea_orm(primary_key, auto_increment = false)]
        pub workspace_id: i32,
        /// What is counted.
        #[sea_orm(primary_key, auto_increment = false)]
        pub counted: String,
        /// How many in each window.
        pub most: i64,
        /// The length of the window.
        pub window_ms: i64,
    }

    /// None: rows are found by key.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// What was taken of the quotas.
pub(crate) mod rate_window {
    use sea_orm::entity::prelude::*;

    /// One window of one quota.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "rate_window")]
    pub(crate) struct Model {
        /// The tenant.
        #[sea_orm(primary_key, auto_increment = false)]
        pub workspace_id: i32,
        /// What is counted, and of which audience.
        #[sea_orm(primary_key, auto_increment = false)]
        pub counted: String,
        /// The turn of the clock that it began at.
        #[sea_orm(primary_key, auto_increment = false)]
        pub began_ms: i64,
        /// When it is over, for whoever removes it.
        pub ends_ms: i64,
        /// By all replicas.
        pub taken: i64,
    }

    /// None: rows are found by key.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The replicas, which share the quotas.
pub(crate) mod replica {
    use sea_orm::entity::prelude::*;

    /// One process.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "replica")]
    pub(crate) struct Model {
        /// Chosen at its start.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        /// When it last said that it lives.
        pub seen_ms: i64,
    }

    /// None: rows are found by key.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

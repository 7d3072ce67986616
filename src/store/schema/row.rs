//! Rows in the database. The fields of a struct are the one definition of a row's columns:
//! [`table!`] defines a table's entity from them, and [`row!`] a batch without a table, such as
//! keys. They yield the texts of statements, their parameters, and the decoding by position.

use sea_orm::sea_query::ArrayType;
use sea_orm::{DbErr, QueryResult, Value};
use uuid::Uuid;

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Small,
    Int,
    Big,
    Bool,
    Uuid,
    /// Text; never empty where it may be NULL.
    Text,
}

/// A column of a [`Row`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Column {
    pub name: &'static str,
    pub kind: Kind,
    pub nullable: bool,
    pub index: usize,
}

/// A row of a batch.
pub(crate) trait Row {
    const COUNT: usize;
    /// Its columns, in the order of the fields.
    fn columns() -> Vec<Column>;
    /// The value of the column at `index`; NULL may be that of another type.
    fn value(&self, index: usize) -> Value;
}

impl Column {
    /// Its value in a row.
    pub(crate) fn of(&self, row: &impl Row) -> Value {
        let value = row.value(self.index);
        if is_null(&value) {
            self.kind.null()
        } else {
            value
        }
    }

    /// Its value in a row as an element of an array.
    pub(crate) fn element_of(&self, row: &impl Row) -> Value {
        let value = row.value(self.index);
        if is_null(&value) {
            self.kind.stand_in()
        } else {
            value
        }
    }
}

fn is_null(value: &Value) -> bool {
    matches!(
        value,
        Value::SmallInt(None)
            | Value::Int(None)
            | Value::BigInt(None)
            | Value::Bool(None)
            | Value::Uuid(None)
            | Value::String(None)
    )
}

/// A row that is decoded by position, which costs a third of decoding by name.
pub(crate) trait FromRow: Row + Sized {
    /// Decodes the columns that begin at `first`.
    fn from_row(row: &QueryResult, first: usize) -> Result<Self, DbErr>;
}

/// A type that a column has.
pub(crate) trait Cell {
    const KIND: Kind;
    const NULLABLE: bool;
}

macro_rules! cells {
    ($($type:ty: $kind:ident),*) => {$(
        impl Cell for $type {
            const KIND: Kind = Kind::$kind;
            const NULLABLE: bool = false;
        }
    )*};
}

cells!(i16: Small, i32: Int, i64: Big, bool: Bool, Uuid: Uuid, String: Text);

impl<T: Cell> Cell for Option<T> {
    const KIND: Kind = T::KIND;
    const NULLABLE: bool = true;
}

/// Either no row, whose columns are all NULL, or one.
impl<R: Row> Row for Option<R> {
    const COUNT: usize = R::COUNT;

    fn columns() -> Vec<Column> {
        R::columns()
    }

    fn value(&self, index: usize) -> Value {
        match self {
            Some(row) => row.value(index),
            None => Value::String(None),
        }
    }
}

impl<R: Row> Row for &R {
    const COUNT: usize = R::COUNT;

    fn columns() -> Vec<Column> {
        R::columns()
    }

    fn value(&self, index: usize) -> Value {
        (*self).value(index)
    }
}

/// Two rows as one. Their columns must have different names.
impl<A: Row, B: Row> Row for (A, B) {
    const COUNT: usize = A::COUNT + B::COUNT;

    fn columns() -> Vec<Column> {
        let right = B::columns().into_iter().map(|column| Column {
            index: column.index + A::COUNT,
            ..column
        });
        A::columns().into_iter().chain(right).collect()
    }

    fn value(&self, index: usize) -> Value {
        match index.checked_sub(A::COUNT) {
            None => self.0.value(index),
            Some(index) => self.1.value(index),
        }
    }
}

/// Declares a struct and makes it a [`Row`] of its fields.
macro_rules! row {
    (
        $(#[$meta:meta])*
        $vis:vis struct $row:ident {
            $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty),* $(,)?
        }
    ) => {
        $(#[$meta])*
        $vis struct $row {
            $($(#[$field_meta])* $field_vis $field: $type),*
        }

        $crate::store::schema::row::row!(impl $row { $($field: $type),* });
    };
    (impl $row:ident { $($field:ident: $type:ty),* $(,)? }) => {
        impl $crate::store::schema::row::Row for $row {
            const COUNT: usize = [$(stringify!($field)),*].len();

            fn columns() -> Vec<$crate::store::schema::row::Column> {
                use $crate::store::schema::row::{Cell, Column};
                let columns = [$((
                    stringify!($field),
                    <$type as Cell>::KIND,
                    <$type as Cell>::NULLABLE,
                )),*];
                let numbered = columns.into_iter().enumerate();
                numbered
                    .map(|(index, (name, kind, nullable))| Column { name, kind, nullable, index })
                    .collect()
            }

            fn value(&self, index: usize) -> sea_orm::Value {
                let mut at = 0..;
                $(
                    if at.next() == Some(index) {
                        return self.$field.clone().into();
                    }
                )*
                unreachable!("a row has no column {index}")
            }
        }

        impl $crate::store::schema::row::FromRow for $row {
            fn from_row(row: &sea_orm::QueryResult, first: usize) -> Result<Self, sea_orm::DbErr> {
                let mut at = first..;
                let mut next = || at.next().unwrap_or_default();
                Ok(Self { $($field: row.try_get_by_index(next())?),* })
            }
        }
    };
}
pub(crate) use row;

/// Declares a table: a module with its sea-orm entity, whose model is a [`Row`]. The columns of the
/// key come first. A model's `Debug` shows its key alone, so that no secret and no payload reaches
/// a log.
macro_rules! table {
    (
        $(#[$meta:meta])*
        $table:ident = $name:literal {
            key {
                $($(#[$key_meta:meta])* $key:ident: $key_type:ty),* $(,)?
            }
            $($(#[$column_meta:meta])* $column:ident: $type:ty),* $(,)?
        }
    ) => {
        $(#[$meta])*
        pub(crate) mod $table {
            use sea_orm::entity::prelude::*;

            #[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
            #[sea_orm(table_name = $name)]
            pub(crate) struct Model {
                $(
                    $(#[$key_meta])*
                    #[sea_orm(primary_key, auto_increment = false)]
                    pub $key: $key_type,
                )*
                $($(#[$column_meta])* pub $column: $type,)*
            }

            impl std::fmt::Debug for Model {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.debug_struct($name)
                        $(.field(stringify!($key), &self.$key))*
                        .finish_non_exhaustive()
                }
            }

            /// None: rows are found by key.
            #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
            pub(crate) enum Relation {}

            impl ActiveModelBehavior for ActiveModel {}

            $crate::store::schema::row::row!(impl Model {
                $($key: $key_type,)* $($column: $type),*
            });
        }
    };
}
pub(crate) use table;

impl Kind {
    /// The array of such values and its element's type on PostgreSQL.
    pub(crate) fn array(self) -> (ArrayType, &'static str) {
        match self {
            Self::Small => (ArrayType::SmallInt, "int2"),
            Self::Int => (ArrayType::Int, "int4"),
            Self::Big => (ArrayType::BigInt, "int8"),
            Self::Bool => (ArrayType::Bool, "bool"),
            Self::Uuid => (ArrayType::Uuid, "uuid"),
            Self::Text => (ArrayType::String, "text"),
        }
    }

    fn null(self) -> Value {
        match self {
            Self::Small => Value::SmallInt(None),
            Self::Int => Value::Int(None),
            Self::Big => Value::BigInt(None),
            Self::Bool => Value::Bool(None),
            Self::Uuid => Value::Uuid(None),
            Self::Text => Value::String(None),
        }
    }

    /// Stands for NULL inside an array, whose elements cannot be NULL: a value that no nullable
    /// column has.
    fn stand_in(self) -> Value {
        match self {
            Self::Small => i16::MIN.into(),
            Self::Int => i32::MIN.into(),
            Self::Big => i64::MIN.into(),
            Self::Bool => false.into(),
            Self::Uuid => Uuid::nil().into(),
            Self::Text => String::new().into(),
        }
    }

    /// The stand-in as PostgreSQL writes it; none where no column of this type is nullable.
    pub(crate) fn stand_in_literal(self) -> Option<String> {
        match self {
            Self::Big => Some(format!("'{}'::int8", i64::MIN)),
            Self::Uuid => Some(format!("'{}'::uuid", Uuid::nil())),
            Self::Text => Some("''".to_owned()),
            Self::Small | Self::Int | Self::Bool => None,
        }
    }
}

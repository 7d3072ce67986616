//! SQLite statements over a batch that travels as rows of values.

use sea_orm::{DbBackend, Statement, Value};

use crate::store::schema::row::Row;
use crate::store::schema::statement::Columns;

/// Limit of rows in one statement; SQLite takes 32,766 values.
const MAX_ROWS: usize = 1024;

/// A statement over a batch of rows, which its text reads as the table `batch`. It has a text for
/// each power of two of rows up to [`MAX_ROWS`], so that the texts are few and stay prepared. Rows
/// of NULL fill up a smaller batch; the text must ignore them.
pub(crate) struct ValuesStatement<R> {
    columns: Columns<R>,
    texts: Vec<String>,
}

impl<R: Row> ValuesStatement<R> {
    pub(crate) fn new(columns: Columns<R>, text: &str) -> Self {
        let names = columns.names("");
        let row = format!("({})", vec!["?"; columns.len()].join(","));
        let texts = (0..=MAX_ROWS.ilog2()).map(|power| {
            let rows = vec![row.as_str(); 1 << power].join(",");
            format!("WITH batch ({names}) AS (VALUES {rows}) {text}")
        });
        Self {
            texts: texts.collect(),
            columns,
        }
    }

    /// The statements for these rows: one for each [`MAX_ROWS`].
    pub(crate) fn over(&self, rows: &[R]) -> impl Iterator<Item = Statement> {
        rows.chunks(MAX_ROWS).map(|rows| {
            let size = rows.len().next_power_of_two();
            let mut values = Vec::with_capacity(size * self.columns.len());
            values.extend(rows.iter().flat_map(|row| self.columns.row(row)));
            values.resize(size * self.columns.len(), Value::BigInt(None));
            let text = &self.texts[size.ilog2() as usize];
            Statement::from_sql_and_values(DbBackend::Sqlite, text, values)
        })
    }
}

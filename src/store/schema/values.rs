//! SQLite statements over a batch that travels as rows of values.

use sea_orm::{DbBackend, Statement, Value};

/// The most rows of one statement; SQLite takes 32,766 values.
const MAX_ROWS: usize = 1024;

/// One statement over rows of values. A text for each power of two of rows, up to [`MAX_ROWS`], so
/// that the texts are few and stay prepared; rows of NULL, which match nothing, fill up a smaller
/// batch.
pub(crate) struct ValuesStatement {
    columns: usize,
    texts: Vec<String>,
}

impl ValuesStatement {
    /// `text` is given the rows, and their columns are `column1`, `column2` and so on.
    pub(crate) fn new(columns: usize, text: impl Fn(&str) -> String) -> Self {
        let row = format!("({})", vec!["?"; columns].join(","));
        let texts = (0..=MAX_ROWS.ilog2()).map(|power| {
            text(&format!(
                "(VALUES {})",
                vec![row.as_str(); 1 << power].join(",")
            ))
        });
        Self {
            columns,
            texts: texts.collect(),
        }
    }

    /// The statements for `rows`: one, but for more than [`MAX_ROWS`].
    pub(crate) fn of<const N: usize>(
        &self,
        rows: impl Iterator<Item = [Value; N]>,
    ) -> Vec<Statement> {
        let values: Vec<Value> = rows.flatten().collect();
        let statement = |values: &[Value]| {
            let size = (values.len() / self.columns).next_power_of_two();
            let mut values = values.to_vec();
            values.resize(size * self.columns, Value::BigInt(None));
            Statement::from_sql_and_values(
                DbBackend::Sqlite,
                &self.texts[size.ilog2() as usize],
                values,
            )
        };
        values
            .chunks(MAX_ROWS * self.columns)
            .map(statement)
            .collect()
    }
}

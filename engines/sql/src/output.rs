//! Rows as text: tables for people, and the formats that programs read.
//!
//! Always holds: rows are written as they come; only a table, whose columns are as wide as their widest cell,
//! keeps rows, and no more than it was allowed.

use std::io::Write;

use clap::ValueEnum;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::csv::WriterBuilder;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::writer::{JsonArray, LineDelimited};
use datafusion::arrow::json::{Writer, WriterBuilder as JsonBuilder};
use datafusion::arrow::util::pretty;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use futures_util::TryStreamExt;

use crate::failure::Failure;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for people
    Table,
    /// Values with commas between them, with a line of names
    Csv,
    /// The same with tabs
    Tsv,
    /// One array of objects
    Json,
    /// One object on each line
    #[value(name = "nd-json", aliases = ["ndjson", "jsonl"])]
    NdJson,
}

/// Writes all rows; returns how many there were. A table shows at most `rows_max` of them.
///
/// # Errors
/// Those of the statement, and of the place that is written to.
pub async fn write(
    mut rows: SendableRecordBatchStream,
    format: Format,
    rows_max: usize,
    out: &mut (impl Write + Send),
) -> Result<usize, Failure> {
    let schema = rows.schema();
    let mut writer = Rows::new(format, schema, rows_max, out);
    let mut count = 0;
    while let Some(batch) = rows.try_next().await? {
        count += batch.num_rows();
        writer.write(batch)?;
    }
    writer.finish(count)?;
    Ok(count)
}

/// What one format does with rows.
enum Rows<'a, W: Write> {
    Table {
        schema: SchemaRef,
        kept: Vec<RecordBatch>,
        room: usize,
        rows_max: usize,
        out: &'a mut W,
    },
    Separated {
        separator: u8,
        has_head: bool,
        schema: SchemaRef,
        out: &'a mut W,
    },
    Array(Writer<&'a mut W, JsonArray>),
    Lines(Writer<&'a mut W, LineDelimited>),
}

impl<'a, W: Write> Rows<'a, W> {
    fn new(format: Format, schema: SchemaRef, rows_max: usize, out: &'a mut W) -> Rows<'a, W> {
        // A value that is missing is written as such, so that all objects have the same names.
        let json = JsonBuilder::new().with_explicit_nulls(true);
        match format {
            Format::Table => {
                Rows::Table { schema, kept: Vec::new(), room: rows_max, rows_max, out }
            }
            Format::Csv => Rows::Separated { separator: b',', has_head: false, schema, out },
            Format::Tsv => Rows::Separated { separator: b'\t', has_head: false, schema, out },
            Format::Json => Rows::Array(json.build(out)),
            Format::NdJson => Rows::Lines(json.build(out)),
        }
    }

    fn write(&mut self, batch: RecordBatch) -> Result<(), Failure> {
        match self {
            Rows::Table { kept, room, .. } => {
                let count = batch.num_rows().min(*room);
                *room -= count;
                if count > 0 {
                    kept.push(batch.slice(0, count));
                }
                Ok(())
            }
            Rows::Separated { separator, has_head, out, .. } => {
                let builder = WriterBuilder::new().with_delimiter(*separator);
                let mut writer = builder.with_header(!*has_head).build(&mut **out);
                *has_head = true;
                writer.write(&batch).map_err(failed)
            }
            Rows::Array(writer) => writer.write(&batch).map_err(failed),
            Rows::Lines(writer) => writer.write(&batch).map_err(failed),
        }
    }

    fn finish(self, count: usize) -> Result<(), Failure> {
        match self {
            // A statement that is not a question has nothing to show.
            Rows::Table { schema, .. } if schema.fields().is_empty() => Ok(()),
            Rows::Table { schema, kept, rows_max, out, .. } => {
                let kept = match kept.is_empty() {
                    true => vec![RecordBatch::new_empty(schema)],
                    false => kept,
                };
                writeln!(out, "{}", pretty::pretty_format_batches(&kept).map_err(failed)?)?;
                if count > rows_max {
                    writeln!(out, "the first {rows_max} of {count} rows; --max-rows shows more")?;
                }
                Ok(())
            }
            Rows::Separated { separator, has_head: false, schema, out }
                if !schema.fields().is_empty() =>
            {
                let empty = RecordBatch::new_empty(schema);
                let builder = WriterBuilder::new().with_delimiter(separator).with_header(true);
                builder.build(out).write(&empty).map_err(failed)
            }
            Rows::Separated { .. } => Ok(()),
            Rows::Array(mut writer) => writer.finish().map_err(failed),
            Rows::Lines(mut writer) => writer.finish().map_err(failed),
        }
    }
}

/// Returns why rows could not be written; the reader may have gone away.
fn failed(error: ArrowError) -> Failure {
    match error {
        ArrowError::IoError(_, error) => error.into(),
        error => DataFusionError::from(error).into(),
    }
}

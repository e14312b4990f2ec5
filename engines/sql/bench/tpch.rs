//! TPC-H: its tables as files of Parquet, made by rule, and its queries with the parameters of its validation.

use std::fmt::{Display, Write as _};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context, Result};
use datafusion::prelude::{SessionConfig, SessionContext};
use tpchgen::csv;
use tpchgen::generators as rows;

/// The tables and their columns.
pub(crate) const TABLES: [(&str, &str); 8] = [
    (
        "customer",
        "c_custkey BIGINT, c_name VARCHAR, c_address VARCHAR, c_nationkey BIGINT, c_phone VARCHAR, \
         c_acctbal DECIMAL(15, 2), c_mktsegment VARCHAR, c_comment VARCHAR",
    ),
    (
        "lineitem",
        "l_orderkey BIGINT, l_partkey BIGINT, l_suppkey BIGINT, l_linenumber INT, l_quantity DECIMAL(15, 2), \
         l_extendedprice DECIMAL(15, 2), l_discount DECIMAL(15, 2), l_tax DECIMAL(15, 2), l_returnflag VARCHAR, \
         l_linestatus VARCHAR, l_shipdate DATE, l_commitdate DATE, l_receiptdate DATE, l_shipinstruct VARCHAR, \
         l_shipmode VARCHAR, l_comment VARCHAR",
    ),
    ("nation", "n_nationkey BIGINT, n_name VARCHAR, n_regionkey BIGINT, n_comment VARCHAR"),
    (
        "orders",
        "o_orderkey BIGINT, o_custkey BIGINT, o_orderstatus VARCHAR, o_totalprice DECIMAL(15, 2), o_orderdate DATE, \
         o_orderpriority VARCHAR, o_clerk VARCHAR, o_shippriority INT, o_comment VARCHAR",
    ),
    (
        "part",
        "p_partkey BIGINT, p_name VARCHAR, p_mfgr VARCHAR, p_brand VARCHAR, p_type VARCHAR, p_size INT, \
         p_container VARCHAR, p_retailprice DECIMAL(15, 2), p_comment VARCHAR",
    ),
    (
        "partsupp",
        "ps_partkey BIGINT, ps_suppkey BIGINT, ps_availqty INT, ps_supplycost DECIMAL(15, 2), ps_comment VARCHAR",
    ),
    ("region", "r_regionkey BIGINT, r_name VARCHAR, r_comment VARCHAR"),
    (
        "supplier",
        "s_suppkey BIGINT, s_name VARCHAR, s_address VARCHAR, s_nationkey BIGINT, s_phone VARCHAR, \
         s_acctbal DECIMAL(15, 2), s_comment VARCHAR",
    ),
];

macro_rules! queries {
    ($($number:literal)*) => {
        [$(include_str!(concat!("../tests/tpch/q", $number, ".sql")),)*]
    };
}

/// The queries, from the first to the last.
pub(crate) const QUERIES: [&str; 22] = queries! {
    "01" "02" "03" "04" "05" "06" "07" "08" "09" "10" "11" "12" "13" "14" "15" "16" "17" "18" "19" "20" "21" "22"
};

/// Returns the statement that makes a table of a file.
pub(crate) fn create(table: &str, location: &str) -> String {
    format!("CREATE EXTERNAL TABLE {table} STORED AS PARQUET LOCATION '{location}'")
}

/// Makes the files of all tables in a directory, `NAME.parquet`, compressed with zstd. `scale` 1 is 6 million rows of
/// lineitem.
///
/// # Errors
/// Those of the disk.
pub(crate) async fn make(directory: &Path, scale: f64) -> Result<()> {
    std::fs::create_dir_all(directory).context("make the directory of the tables")?;
    for (table, columns) in TABLES {
        let text = directory.join(format!("{table}.csv"));
        write(table, &text, scale).with_context(|| format!("write {}", text.display()))?;
        // One part at a time, so that rows stay in their order.
        let config = SessionConfig::new().with_target_partitions(1);
        let context = SessionContext::new_with_config(config);
        let file = directory.join(format!("{table}.parquet"));
        let statements = [
            format!(
                "CREATE EXTERNAL TABLE {table} ({columns}) STORED AS CSV LOCATION '{}' \
                 OPTIONS ('format.has_header' 'true')",
                text.display()
            ),
            format!(
                "COPY {table} TO '{}' STORED AS PARQUET OPTIONS ('format.compression' 'zstd(3)', \
                 'format.max_row_group_size' '122880')",
                file.display()
            ),
        ];
        for statement in statements {
            context.sql(&statement).await?.collect().await?;
        }
        std::fs::remove_file(&text)?;
    }
    Ok(())
}

fn write(table: &str, file: &Path, scale: f64) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(file)?);
    let mut all =
        |head: &str, lines: &mut dyn Iterator<Item = Box<dyn Display + '_>>| -> Result<()> {
            writeln!(out, "{head}")?;
            let mut text = String::new();
            for line in lines {
                text.clear();
                writeln!(text, "{line}")?;
                out.write_all(text.as_bytes())?;
            }
            Ok(())
        };
    macro_rules! table {
        ($generator:ident, $csv:ident) => {{
            let generator = rows::$generator::new(scale, 1, 1);
            let mut lines =
                generator.iter().map(|row| Box::new(csv::$csv::new(row)) as Box<dyn Display>);
            all(csv::$csv::header(), &mut lines)?
        }};
    }
    match table {
        "customer" => table!(CustomerGenerator, CustomerCsv),
        "lineitem" => table!(LineItemGenerator, LineItemCsv),
        "nation" => table!(NationGenerator, NationCsv),
        "orders" => table!(OrderGenerator, OrderCsv),
        "part" => table!(PartGenerator, PartCsv),
        "partsupp" => table!(PartSuppGenerator, PartSuppCsv),
        "region" => table!(RegionGenerator, RegionCsv),
        "supplier" => table!(SupplierGenerator, SupplierCsv),
        other => anyhow::bail!("TPC-H has no table {other}"),
    }
    out.flush()?;
    Ok(())
}

//! Writes a file to the standard output: `read_file node1:7070 datasets/train.bin`.

use std::error::Error;
use std::io::Write;

use futures_util::StreamExt;
use millrace_client::{Client, ClientConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err("usage: read_file ADDRESS PATH".into());
    };
    let client = Client::connect(address, ClientConfig::new()).await?;
    let file = client.stat(&path).await?;
    let mut stream = client.reader(&file).into_stream();
    let mut out = std::io::stdout().lock();
    while let Some(bytes) = stream.next().await {
        out.write_all(&bytes?)?;
    }
    Ok(())
}

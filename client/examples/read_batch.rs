//! Reads the first 4 KiB of every file of a directory at once: `read_batch node1:7070 datasets`.

use std::error::Error;

use millrace_client::{Client, ClientConfig, File, Kind};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err("usage: read_batch ADDRESS DIRECTORY".into());
    };
    let client = Client::connect(address, ClientConfig::new()).await?;
    let entries = client.list(&directory).await?;
    let files = entries.iter().filter(|entry| entry.kind == Kind::File);
    // No file is asked for again: the list has said enough of it.
    let files: Vec<File> = files.map(|entry| client.file(&directory, entry)).collect();
    let ranges: Vec<_> = files.iter().map(|file| (file, 0, 4096)).collect();
    // Each range has a result of its own, in their order.
    for (file, bytes) in files.iter().zip(client.read_many(&ranges).await) {
        match bytes {
            Ok(bytes) => println!("{}: {} of {} bytes", file.path, bytes.len(), file.length),
            Err(error) => println!("{}: {error}", file.path),
        }
    }
    Ok(())
}

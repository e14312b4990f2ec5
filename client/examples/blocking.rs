//! Counts the lines of a file without async: `blocking node1:7070 datasets/words.txt`.

use std::error::Error;
use std::io::BufRead;

use millrace_client::ClientConfig;
use millrace_client::blocking::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err("usage: blocking ADDRESS PATH".into());
    };
    let client = Client::connect(address, ClientConfig::new())?;
    let file = client.stat(&path)?;
    let mut line_count = 0;
    for line in client.reader(&file).split(b'\n') {
        line?;
        line_count += 1;
    }
    println!("{path}: {line_count} lines, {} bytes", file.length);
    Ok(())
}

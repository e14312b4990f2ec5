//! Prints the members of a cluster whenever they change: `follow_cluster node1:7070,node2:7070`.

use std::error::Error;
use std::time::Duration;

use millrace_client::{Client, ClientConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).ok_or("usage: follow_cluster ADDRESS[,ADDRESS...]")?;
    let client = Client::connect(address, ClientConfig::new()).await?;
    let mut known = None;
    loop {
        // The client follows the cluster by itself; this only looks at what it knows.
        let cluster = client.cluster();
        if cluster != known {
            match &cluster {
                None => println!("the node is in no cluster, or does not know yet"),
                Some(cluster) => println!("epoch {} of {}:", cluster.epoch, cluster.id),
            }
            for member in cluster.iter().flat_map(|cluster| &cluster.members) {
                let state = match (member.is_suspect, member.is_active) {
                    (true, _) => "not reached",
                    (false, true) => "active",
                    (false, false) => "drained",
                };
                println!("  {} at {}: {state}", member.id, member.address);
            }
            known = cluster;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

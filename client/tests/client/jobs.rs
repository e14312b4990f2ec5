//! Load jobs are begun once, whatever becomes of the answers.

use std::sync::{Arc, Mutex};

use millrace_client::{Client, ClientConfig, JobId, JobOptions, Status};
use millrace_proto::job::ArchivedStartJobRequest;
use millrace_proto::{Op, frame};

use crate::mock::{Act, Mock, Setup};
use crate::{config, honest};

fn paths() -> Vec<String> {
    vec!["datasets".to_owned()]
}

/// Connects a client that makes changes at the mock.
async fn connect(mock: &Mock) -> Client {
    let config = ClientConfig { admin: Some(mock.address.to_string()), ..config() };
    Client::connect(&*mock.address, config).await.unwrap()
}

#[tokio::test]
async fn a_start_whose_answer_is_lost_is_repeated_with_the_same_id() {
    let ids = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ids);
    let mock = Mock::start(Setup::default(), move |world, asked| {
        if asked.op != Op::StartJob {
            return honest(world, asked);
        }
        let mut seen = seen.lock().unwrap();
        let request = frame::body::<ArchivedStartJobRequest>(&asked.body).unwrap();
        seen.push(JobId(request.id.to_native()));
        if seen.len() < 3 { vec![Act::Close] } else { vec![Act::Send(asked.status(Status::Ok))] }
    })
    .await;
    let client = connect(&mock).await;
    let id = client.start_job(&paths(), &JobOptions::new()).await.unwrap();
    assert_eq!(*ids.lock().unwrap(), [id; 3]);
    let other = client.start_job(&paths(), &JobOptions::new()).await.unwrap();
    assert_ne!(id, other);
}

#[tokio::test]
async fn a_node_that_is_older_than_jobs_says_so() {
    let mock = Mock::start(Setup::default(), honest).await;
    let client = connect(&mock).await;
    let refused = client.start_job(&paths(), &JobOptions::new()).await.unwrap_err();
    assert_eq!(refused.status(), Some(Status::UnknownOp));
    assert_eq!(client.jobs().await.unwrap_err().status(), Some(Status::UnknownOp));
}

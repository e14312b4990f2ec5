//! The pages for operators: how the node is, over HTTP.
//!
//! ```text
//!  /metrics  figures, as OpenMetrics where the client takes that, else as Prometheus' text
//!  /livez    200 while the process runs
//!  /readyz   200 while the node serves; 503 while it starts, is fenced or drains
//!  /status   the same figures summed, with addresses and times, as JSON
//! ```
//!
//! Owns what a node reports before, while and after it serves. Always holds: pages are answered on
//! threads of their own and read numbers that the shards keep anyway, so no shard waits for a page;
//! nothing can be changed here; requests, their size and their time are bounded by `ops`.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use millrace_ops::again;
use millrace_ops::http::{JSON, Listener, Method, Request, Response, Server, TEXT};
use millrace_ops::metrics::Format;
use serde_json::{Map, Value, json};

use crate::cluster::handover::Progress;
use crate::mailbox::Mailboxes;
use crate::metrics::{self, Counters};
use crate::side::SideQueue;
use crate::timings::{HitTimes, Timings};
use crate::worker::SERVER;

mod figures;

/// What a node is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It takes memory, or joins its cluster.
    Starting,
    /// Clients are served.
    Serving,
    /// It takes no more requests, and ends.
    Draining,
}

impl Stage {
    const ALL: [Stage; 3] = [Stage::Starting, Stage::Serving, Stage::Draining];

    fn name(self) -> &'static str {
        match self {
            Stage::Starting => "starting",
            Stage::Serving => "serving",
            Stage::Draining => "draining",
        }
    }
}

/// Where the figures of a node are.
pub(crate) struct Sources {
    pub(crate) address: SocketAddr,
    pub(crate) shard_addresses: Vec<SocketAddr>,
    pub(crate) counters: Arc<[Counters]>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) timings: Arc<Timings>,
    pub(crate) hit_times: Arc<[HitTimes]>,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) queue: SideQueue,
}

/// What the pages report.
struct Told {
    started: Instant,
    stage: AtomicU8,
    /// Known once the node has taken what it needs.
    sources: OnceLock<Sources>,
}

/// The pages of a node, served until this is dropped; none if they are off.
#[derive(Default)]
pub(crate) struct Pages(Option<(Arc<Told>, Server)>);

impl Pages {
    /// Serves pages at an address. Until [`Pages::tell_of`] they say that it starts.
    ///
    /// # Errors
    /// If the address cannot be listened on, or there is no thread to be had.
    pub(crate) fn start(address: SocketAddr, started: Instant) -> io::Result<Pages> {
        let bind = || TcpListener::bind(address);
        let listener = again::while_in_use(again::is_address_in_use, bind)?;
        let bound = listener.local_addr()?;
        let stage = AtomicU8::new(Stage::Starting as u8);
        let told = Arc::new(Told { started, stage, sources: OnceLock::new() });
        let listeners = vec![((), Listener::Tcp(listener))];
        let answered = Arc::clone(&told);
        let server = Server::start("node", listeners, move |(), request| answered.answer(request))?;
        tracing::info!("pages for operators at http://{bound}");
        Ok(Pages(Some((told, server))))
    }

    /// Says where the figures are.
    pub(crate) fn tell_of(&self, sources: Sources) {
        if let Some((told, _)) = &self.0 {
            // It is told once.
            let _ = told.sources.set(sources);
        }
    }

    /// Says what the node does now.
    pub(crate) fn set_stage(&self, stage: Stage) {
        if let Some((told, _)) = &self.0 {
            told.stage.store(stage as u8, Ordering::Relaxed);
        }
    }
}

impl Told {
    fn stage(&self) -> Stage {
        Stage::ALL[usize::from(self.stage.load(Ordering::Relaxed))]
    }

    fn is_fenced(&self) -> bool {
        self.sources.get().is_some_and(|sources| sources.progress.is_fenced())
    }

    fn answer(&self, request: &Request) -> Response {
        let path = request.path.split('?').next().unwrap_or_default();
        let mut response = match (request.method, path) {
            (Method::Post, _) => Response::refusal(405, "Nothing can be changed here: use GET"),
            (_, "/livez") => Response::new(200, TEXT, "ok\n"),
            (_, "/readyz") => self.ready(),
            (_, "/metrics") => {
                let format = Format::for_client(&request.accept);
                let text = figures::text(format, self.sources.get(), self.is_ready());
                Response::new(200, format.content_type(), text)
            }
            (_, "/status") => Response::new(200, JSON, format!("{:#}\n", self.status())),
            _ => Response::refusal(404, "There are /metrics, /livez, /readyz and /status"),
        };
        response.is_head = request.method == Method::Head;
        response
    }

    fn is_ready(&self) -> bool {
        self.stage() == Stage::Serving && !self.is_fenced()
    }

    fn ready(&self) -> Response {
        match self.stage() {
            Stage::Serving if self.is_fenced() => {
                Response::refusal(503, "fenced: the node has lost coordination")
            }
            Stage::Serving => Response::new(200, TEXT, "ok\n"),
            stage => Response::refusal(503, stage.name()),
        }
    }

    fn status(&self) -> Value {
        let mut status = json!({
            "server": SERVER,
            "stage": self.stage().name(),
            "is_ready": self.is_ready(),
            "is_fenced": self.is_fenced(),
            "uptime_s": self.started.elapsed().as_secs(),
        });
        let Some(sources) = self.sources.get() else { return status };
        let (fills, oldest) = sources.timings.fills_under_way();
        status["address"] = json!(sources.address.to_string());
        let texts = sources.shard_addresses.iter().map(SocketAddr::to_string);
        status["shard_addresses"] = texts.collect();
        status["fills_under_way"] = json!(fills);
        status["oldest_fill_ms"] = json!(u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX));
        let queues = sources.queue.lengths();
        let queues: Map<_, _> =
            queues.map(|(name, length)| (name.into(), length.into())).into_iter().collect();
        status["queues"] = Value::Object(queues);
        let counters = metrics::sum(&sources.counters).into_iter().chain(sources.progress.values());
        let counters: Map<_, _> =
            counters.map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
        status["counters"] = Value::Object(counters);
        status
    }
}

#[cfg(test)]
mod tests;

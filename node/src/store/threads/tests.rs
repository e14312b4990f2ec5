//! Lanes that hang beside lanes that do not.

use super::*;
use tokio::time::{sleep, timeout};

/// A guard against hanging.
const GUARD: Duration = Duration::from_secs(30);

struct Fixture {
    runtime: tokio::runtime::Runtime,
    pool: Pool,
    /// Dropped to have the calls that hang return.
    release: Option<flume::Sender<()>>,
    released: flume::Receiver<()>,
}

fn lane(name: &str) -> LaneId {
    LaneId { name: name.into(), mount: 1 }
}

fn limits(kept: usize, most: usize, lane_max: usize) -> PoolLimits {
    PoolLimits {
        name: "test",
        kept,
        most,
        lane_max,
        queue_max: 3,
        queue_key: "some_queue_max",
        niceness: 0,
        patience: Duration::from_millis(300),
        cpus: crate::config::usable_cpus().into(),
    }
}

impl Fixture {
    fn new(limits: PoolLimits) -> Fixture {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (release, released) = flume::bounded(1);
        let pool = Pool::start(limits, Arc::default()).unwrap();
        Fixture { runtime, pool, release: Some(release), released }
    }

    /// Makes a call that hangs; returns its place, or why it has no place.
    fn hang(&self, name: &str) -> Result<(), StoreError> {
        let place = self.runtime.block_on(async {
            timeout(GUARD, self.pool.enter(lane(name))).await.expect("an answer")
        })?;
        let released = self.released.clone();
        self.runtime.spawn(place.run(move || released.recv().is_ok()));
        // The task has to be polled once to hand the call over.
        self.runtime.block_on(tokio::task::yield_now());
        Ok(())
    }

    fn pause(&self, ms: u64) {
        self.runtime.block_on(async { sleep(Duration::from_millis(ms)).await });
    }

    fn call(&self, name: &str) -> Result<u32, StoreError> {
        self.runtime.block_on(async {
            let called = async { Ok(self.pool.enter(lane(name)).await?.run(|| 7).await) };
            timeout(GUARD, called).await.expect("an answer")
        })
    }
}

#[test]
fn lanes_that_hang_leave_threads_to_others() {
    // The system gives no further thread.
    let fixture = Fixture::new(limits(6, 6, 6));
    for name in ["one", "one", "two", "two", "three"] {
        fixture.hang(name).unwrap();
    }
    assert_eq!(fixture.call("four"), Ok(7));
    assert_eq!(fixture.pool.thread_count(), 6);
}

#[test]
fn many_that_hang_leave_something_to_another() {
    let fixture = Fixture::new(limits(6, 70, 16));
    for lane_number in 0..8 {
        let name = lane_number.to_string();
        let mut count = 0;
        loop {
            let entered = fixture.runtime.block_on(async {
                timeout(Duration::from_millis(5), fixture.pool.enter(lane(&name))).await
            });
            let Ok(Ok(place)) = entered else { break };
            let released = fixture.released.clone();
            fixture.runtime.spawn(place.run(move || released.recv().is_ok()));
            count += 1;
        }
        assert!(count > 0, "lane {name}");
        assert_eq!(fixture.call("other"), Ok(7), "beside {lane_number} others");
    }
}

#[test]
fn a_lane_gets_as_many_threads_as_it_may_and_no_more() {
    let fixture = Fixture::new(limits(2, 100, 8));
    for _ in 0..8 {
        fixture.hang("one").unwrap();
    }
    let more = fixture.runtime.block_on(async {
        timeout(Duration::from_millis(50), fixture.pool.enter(lane("one"))).await.is_ok()
    });
    assert!(!more, "the ninth waits");
    assert_eq!(fixture.call("two"), Ok(7));
    assert!(fixture.pool.thread_count() <= 10);
}

#[test]
fn too_many_that_wait_are_busy_and_who_goes_makes_room() {
    let fixture = Fixture::new(limits(1, 1, 1));
    fixture.hang("one").unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let pool = fixture.pool.clone();
            fixture.runtime.spawn(async move { pool.enter(lane("one")).await.map(drop) })
        })
        .collect();
    fixture.runtime.block_on(tokio::task::yield_now());
    let error = fixture.call("one").unwrap_err();
    assert!(matches!(&error, StoreError::Busy(text) if text.contains("some_queue_max")), "{error}");
    waiting[0].abort();
    fixture.pause(1);
    let pool = fixture.pool.clone();
    let late = fixture.runtime.spawn(async move { pool.enter(lane("one")).await.map(drop) });
    drop(fixture.release);
    for waits in waiting.into_iter().skip(1).chain([late]) {
        assert_eq!(fixture.runtime.block_on(waits).unwrap(), Ok(()));
    }
}

#[test]
fn what_hangs_is_refused_by_name_tried_again_and_bounded() {
    let mut fixture = Fixture::new(limits(2, 40, 2));
    fixture.hang("dead").unwrap();
    std::thread::sleep(Duration::from_millis(400));
    // The first try after it hangs, and so on; each one that hangs waits longer for the next.
    let (mut refused, mut hung) = (0, 1);
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        match fixture.hang("dead") {
            Ok(()) => hung += 1,
            Err(StoreError::Hangs(name)) => {
                assert_eq!(&*name, "dead");
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(refused > 100 && (2..=4).contains(&hung), "{refused} refused, {hung} hang");
    assert_eq!(fixture.call("other"), Ok(7));
    drop(fixture.release.take());
    fixture.pause(100);
    assert_eq!(fixture.call("dead"), Ok(7), "it answers again");
}

#[test]
fn threads_that_hang_for_ever_are_bounded() {
    let fixture = Fixture::new(limits(2, 8, 2));
    for name in ["a", "b", "c", "d", "e", "f"] {
        for _ in 0..4 {
            let waits = fixture.runtime.block_on(async {
                timeout(Duration::from_millis(20), fixture.pool.enter(lane(name))).await
            });
            if let Ok(Ok(place)) = waits {
                let released = fixture.released.clone();
                fixture.runtime.spawn(place.run(move || released.recv().is_ok()));
            }
        }
    }
    assert_eq!(fixture.pool.thread_count(), 8);
}

#[test]
fn what_waits_in_a_silent_lane_is_sent_away_and_the_silence_is_told_once() {
    let fixture = Fixture::new(PoolLimits { patience: GUARD, ..limits(1, 1, 1) });
    let pool = fixture.pool.clone();
    let watch = fixture.runtime.spawn(async move { pool.watch().await });
    fixture.hang("dead").unwrap();
    let error = fixture.call("dead").unwrap_err();
    assert!(matches!(&error, StoreError::Busy(text) if text.contains("dead")), "{error}");
    let error = fixture.call("dead").unwrap_err();
    assert!(matches!(error, StoreError::Busy(_)), "at once, as long as it is silent");
    let told = fixture.pool.shared.notices.told.lock().unwrap().get(&lane("dead")).map(|it| it.0);
    assert_eq!(told, Some(1));
    watch.abort();
}

#[test]
fn a_call_that_nobody_waits_for_goes_on_and_gives_its_place_back() {
    let mut fixture = Fixture::new(limits(1, 1, 1));
    let place = fixture.runtime.block_on(fixture.pool.enter(lane("one"))).map_err(drop).unwrap();
    let released = fixture.released.clone();
    let call = fixture.runtime.spawn(place.run(move || released.recv().is_ok()));
    fixture.runtime.block_on(tokio::task::yield_now());
    call.abort();
    drop(fixture.release.take());
    assert_eq!(fixture.call("one"), Ok(7));
}

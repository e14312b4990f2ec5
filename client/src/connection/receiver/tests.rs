//! Replies land whole however the stream is cut, and damage never leaves a caller without an answer.

use millrace_proto::message::{Range, ReadReply};
use millrace_proto::{FileId, Op, Status};
use proptest::prelude::*;
use smallvec::smallvec;
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

use super::super::{Answer, Answers, Body, Part, Request};
use super::*;

const LENGTH_MAX: u32 = 1 << 20;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// Sends a read whose payload lands in `landing`.
fn ask(in_flight: &mut InFlight, landing: Landing) -> oneshot::Receiver<Answer> {
    let (sender, receiver) = oneshot::channel();
    let request = Request {
        body: Body::Read(Range { file: FileId(1), version: 1, offset: 0, length: LENGTH_MAX }),
        parts: smallvec![Part { landing: Some(landing), payload_max: LENGTH_MAX }],
        answers: Answers::One(Some(sender)),
        deadline: Instant::now() + Duration::from_secs(60),
        is_patient: true,
    };
    in_flight.send(request, Instant::now(), &mut Vec::new());
    receiver
}

fn reply(request_id: u64, payload: &[u8]) -> Vec<u8> {
    let mut header = Header::request(Op::Read, request_id, 0).reply(Status::Ok);
    header.payload_length = payload.len() as u32;
    let mut out = Vec::new();
    let body = ReadReply { checksums: vec![7; payload.len() % 50] };
    frame::encode(&mut out, header, &body);
    out.extend_from_slice(payload);
    out
}

/// Feeds `stream` in chunks of these sizes, over and over.
fn feed(
    receiver: &mut Receiver,
    in_flight: &mut InFlight,
    mut stream: &[u8],
    sizes: &[usize],
) -> Result<(), Error> {
    let runtime = runtime();
    for size in sizes.iter().cycle() {
        if stream.is_empty() {
            break;
        }
        let (mut chunk, rest) = stream.split_at(stream.len().min(*size));
        stream = rest;
        while !chunk.is_empty() {
            runtime.block_on(receiver.read(&mut chunk)).unwrap();
            receiver.advance(in_flight)?;
        }
    }
    Ok(())
}

fn payload_length() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..100usize,
        4000..4200usize,
        SLICE_SIZE_MAX - 5..SLICE_SIZE_MAX + 5,
        30_000..200_000usize,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn replies_land_whole_however_the_stream_is_cut(
        replies in proptest::collection::vec((payload_length(), 0..3u8), 1..12),
        sizes in proptest::collection::vec(1..70_000usize, 1..8),
    ) {
        let mut in_flight = InFlight::default();
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for (index, &(length, kind)) in replies.iter().enumerate() {
            let landing = match kind {
                0 => Landing::Buffer(BytesMut::with_capacity(length)),
                _ => Landing::Any,
            };
            let answer = ask(&mut in_flight, landing);
            let payload: Vec<u8> = (0..length).map(|byte| (byte * 31 + index) as u8).collect();
            stream.extend(reply(index as u64 + 1, &payload));
            // No caller waits for kind 2 any more.
            if kind != 2 {
                expected.push((answer, payload, kind == 0));
            }
        }
        let mut receiver = Receiver::new();
        feed(&mut receiver, &mut in_flight, &stream, &sizes).unwrap();
        prop_assert!(in_flight.is_empty());
        prop_assert_eq!(in_flight.part_count(), 0);
        for (mut answer, payload, is_lent) in expected {
            let answer = answer.try_recv().unwrap();
            prop_assert!(answer.outcome.is_ok());
            prop_assert_eq!(matches!(answer.landed, Landed::Buffer(_)), is_lent);
            prop_assert!(answer.landed.bytes() == payload);
        }
    }

    #[test]
    fn damaged_or_cut_stream_is_an_error_or_waits_and_every_caller_is_answered(
        length in payload_length(),
        end in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 0..3),
        sizes in proptest::collection::vec(1..70_000usize, 1..4),
    ) {
        let mut in_flight = InFlight::default();
        let landing = Landing::Buffer(BytesMut::with_capacity(LENGTH_MAX as usize));
        let mut first = ask(&mut in_flight, landing);
        let mut second = ask(&mut in_flight, Landing::Any);
        let payload = vec![1; length];
        let mut stream = [reply(1, &payload), reply(2, &payload)].concat();
        stream.truncate(end.index(stream.len()) + 1);
        for (index, mask) in damage {
            let index = index.index(stream.len());
            stream[index] ^= mask;
        }
        let mut receiver = Receiver::new();
        let _ = feed(&mut receiver, &mut in_flight, &stream, &sizes);
        receiver.abandon(&mut in_flight);
        in_flight.fail(&Error::DeadlineExceeded);
        let first = first.try_recv().unwrap();
        prop_assert!(matches!(first.landed, Landed::Buffer(_)));
        if first.outcome.is_err() {
            prop_assert!(first.landed.bytes().is_empty());
        }
        second.try_recv().unwrap();
    }
}

//! Frames are taken apart without losing a byte.

use super::*;
use millrace_proto::zookeeper::{Writer, event};

fn frame(xid: i32, error: i32, body: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out);
    ReplyHeader { xid, zxid: 7, error }.encode(&mut writer);
    body(&mut writer);
    out
}

#[test]
fn a_record_that_is_too_short_or_too_long_is_told_as_bytes() {
    let whole = frame(1, 0, |writer| Stat { version: 3, ..Stat::default() }.encode(writer));
    assert_eq!(Item::decode(&whole, opcode::EXISTS).number("version"), Some(3));
    let mut longer = whole.clone();
    longer.push(9);
    for odd in [&whole[..whole.len() - 1], &longer] {
        let item = Item::decode(odd, opcode::EXISTS);
        assert!(item.texts("unexpected bytes").next().is_some() || item.fields.len() > 3);
        assert_ne!(item, Item::decode(&whole, opcode::EXISTS));
    }
}

#[test]
fn a_body_after_an_error_is_seen() {
    let bare = Item::decode(&frame(1, -101, |_| {}), opcode::EXISTS);
    let more = Item::decode(&frame(1, -101, |writer| writer.int(5)), opcode::EXISTS);
    assert_eq!(bare.error(), Some(-101));
    assert_ne!(bare, more);
}

#[test]
fn null_and_empty_are_kept_apart() {
    let data = |data: Option<&[u8]>| {
        let frame = frame(1, 0, |writer| {
            writer.buffer(data);
            Stat::default().encode(writer);
        });
        Item::decode(&frame, opcode::GET_DATA)
    };
    assert_ne!(data(None), data(Some(b"")));
}

#[test]
fn an_event_is_no_reply() {
    let bytes = frame(xid::NOTIFICATION, 0, |writer| {
        writer.int(event::DELETED);
        writer.int(3);
        writer.string("/a");
    });
    let item = Item::decode(&bytes, opcode::EXISTS);
    assert_eq!(item.kind, Kind::Event);
    assert_eq!(item.texts("path").next(), Some("/a"));
    assert_eq!(item.number("type"), Some(i64::from(event::DELETED)));
}

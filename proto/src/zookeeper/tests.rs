//! Records against bytes that other implementations wrote, and back.

use super::record::OPEN_ACL;
use super::*;

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Checks that the message `hex` is `request` with `xid`, in both directions. Bytes from kazoo 2.11.
#[track_caller]
fn check(hex: &str, xid: i32, request: Request<'_>) {
    let bytes = unhex(hex);
    let mut reader = Reader::new(&bytes);
    assert_eq!(reader.int().unwrap() as usize, bytes.len() - 4);
    assert_eq!(reader.int().unwrap(), xid);
    let code = reader.int().unwrap();
    assert_eq!(code, request.code());
    assert_eq!(Request::decode(code, reader.rest()).unwrap(), request);
    let mut out = Vec::new();
    jute::message(&mut out, |writer| {
        writer.int(xid);
        writer.int(code);
        request.encode(writer);
    });
    assert_eq!(out, bytes);
}

#[test]
fn requests_of_kazoo_are_read_and_written() {
    check("00000008 fffffffe 0000000b", xid::PING, Request::Ping);
    check("00000008 00000005 fffffff5", 5, Request::CloseSession);
    check(
        "00000032 00000001 00000001 00000002 2f61 00000001 78 00000001 0000001f 00000005 \
         776f726c64 00000006 616e796f6e65 00000000",
        1,
        Request::Create {
            kind: CreateKind::Create,
            path: "/a",
            data: Some(b"x"),
            acl: Some(vec![OPEN_ACL]),
            flags: 0,
            ttl_ms: 0,
        },
    );
    check(
        "0000000f 00000003 00000004 00000002 2f61 01",
        3,
        Request::GetData { path: "/a", watch: true },
    );
    check(
        "0000003c 00000004 0000000e 0000000d 00 ffffffff 00000002 2f61 00000000 00000005 00 \
         ffffffff 00000002 2f61 00000001 79 ffffffff ffffffff 01 ffffffff",
        4,
        Request::Multi(vec![
            Request::Check { path: "/a", version: 0 },
            Request::SetData { path: "/a", data: Some(b"y"), version: -1 },
        ]),
    );
    check(
        "0000001d fffffffc 00000064 00000000 00000006 646967657374 00000003 753a70",
        xid::AUTH,
        Request::Auth { scheme: "digest", auth: b"u:p" },
    );
}

#[test]
fn a_handshake_of_kazoo_is_read_and_written() {
    let bytes = unhex(
        "0000002d 00000000 0000000000000000 00002710 0000000000000000 00000010 \
         00000000000000000000000000000000 00",
    );
    let request = ConnectRequest {
        protocol_version: 0,
        last_zxid_seen: 0,
        timeout_ms: 10_000,
        session: 0,
        password: Some(&[0; 16]),
        read_only: Some(false),
    };
    assert_eq!(ConnectRequest::decode(&bytes[4..]).unwrap(), request);
    let mut out = Vec::new();
    jute::message(&mut out, |writer| request.encode(writer));
    assert_eq!(out, bytes);
    let old = ConnectRequest::decode(&bytes[4..bytes.len() - 1]).unwrap();
    assert_eq!(old.read_only, None, "clients of 3.3 send no such field");
}

#[test]
fn null_and_empty_are_kept_apart() {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out);
    writer.buffer(None);
    writer.buffer(Some(b""));
    let mut reader = Reader::new(&out);
    assert_eq!(reader.buffer(), Ok(None));
    assert_eq!(reader.buffer(), Ok(Some(&b""[..])));
}

#[test]
fn bad_records_are_refused() {
    let code = opcode::GET_DATA;
    assert_eq!(Request::decode(code, &[0, 0]), Err(JuteError::Short));
    assert_eq!(Request::decode(code, &unhex("fffffffe")), Err(JuteError::Length(-2)));
    assert_eq!(Request::decode(code, &unhex("7fffffff 2f")), Err(JuteError::Length(i32::MAX)));
    let no_text = unhex("00000001 ff 00");
    assert_eq!(
        Request::decode(code, &no_text),
        Ok(Request::GetData { path: "/\u{fffd}", watch: false })
    );
    assert_eq!(Request::decode(code, &unhex("ffffffff 00")), Err(JuteError::Length(-1)));
    assert_eq!(Request::decode(99, &[]), Err(JuteError::Operation(99)));
    let list = unhex("0000000000000000 7fffffff");
    assert_eq!(Request::decode(opcode::SET_WATCHES, &list), Err(JuteError::Length(i32::MAX)));
    let nested = unhex("0000000e 00 ffffffff");
    assert_eq!(Request::decode(opcode::MULTI, &nested), Err(JuteError::Operation(opcode::MULTI)));
}

proptest::proptest! {
    #[test]
    fn no_record_panics(code in -12..110i32, record in proptest::collection::vec(0u8.., 0..200)) {
        // Decoding is total: what it accepts, it can write and read again.
        if let Ok(request) = Request::decode(code, &record) {
            let mut out = Vec::new();
            request.encode(&mut Writer::new(&mut out));
            proptest::prop_assert_eq!(Request::decode(request.code(), &out), Ok(request));
        }
    }
}

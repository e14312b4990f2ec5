//! Replies of reads, byte by byte.

use super::*;

fn strings(reply: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(reply);
    let list = reader.list(|reader| Ok(reader.path()?.to_owned())).expect("a list");
    assert!(reader.rest().is_empty());
    list.expect("a list that is not null")
}

#[test]
fn get_data_answers_data_and_stat() {
    let mut replica = Replica::new();
    replica.create("/a");
    let reply = replica.read(0, &Request::GetData { path: "/a", watch: false }).expect("/a");
    let mut reader = Reader::new(&reply);
    assert_eq!(reader.buffer(), Ok(Some(&b"x"[..])));
    assert_eq!(Stat::decode(&mut reader), Ok(replica.stat("/a")));
    assert!(reader.rest().is_empty());
}

#[test]
fn errors_write_nothing() {
    let replica = Replica::new();
    for (request, error) in [
        (Request::GetData { path: "/none", watch: true }, Error::NoNode),
        (Request::GetData { path: "/zookeeper/", watch: true }, Error::NoNode),
        (Request::Exists { path: "/none", watch: true }, Error::NoNode),
        (Request::Exists { path: "/\0", watch: true }, Error::BadArguments),
        (Request::GetChildren { path: "zookeeper", watch: true }, Error::NoNode),
        (Request::GetChildren2 { path: "//", watch: true }, Error::NoNode),
        (Request::GetAcl { path: "/none" }, Error::NoNode),
        (Request::GetAllChildrenNumber { path: "/none" }, Error::NoNode),
        (Request::MultiRead(vec![delete("/")]), Error::MarshallingError),
        (Request::Ping, Error::Unimplemented),
    ] {
        let mut out = b"before".to_vec();
        let mut writer = Writer::new(&mut out);
        let outcome = read(&replica.state, &request, 0, &[], false, &mut writer);
        assert_eq!((outcome, &out[..]), (Err(error), &b"before"[..]), "{request:?}");
    }
}

#[test]
fn get_children2_adds_the_stat() {
    let mut replica = Replica::new();
    for path in ["/a", "/a/b", "/a/c"] {
        replica.create(path);
    }
    assert_eq!(replica.children("/a"), ["b", "c"]);
    let reply = replica.read(0, &Request::GetChildren2 { path: "/a", watch: false }).expect("/a");
    let mut reader = Reader::new(&reply);
    let names = reader.list(|reader| reader.path()).expect("a list").expect("not null");
    assert_eq!(names.len(), 2);
    assert_eq!(Stat::decode(&mut reader), Ok(replica.stat("/a")));
}

#[test]
fn the_root_answers_to_its_empty_name_too() {
    let replica = Replica::new();
    assert_eq!(replica.stat(""), replica.stat("/"));
    let number = |path| {
        let reply = replica.read(0, &Request::GetAllChildrenNumber { path }).expect("the root");
        Reader::new(&reply).int()
    };
    assert_eq!((number("/"), number("")), (Ok(3), Ok(4)));
}

#[test]
fn all_descendants_are_counted() {
    let mut replica = Replica::new();
    for path in ["/a", "/a/b", "/a/b/c", "/a/b/c/d", "/a/e", "/ab"] {
        replica.create(path);
    }
    for (path, count) in [("/a", 4), ("/a/b", 2), ("/a/b/c/d", 0), ("/", 9)] {
        let reply = replica.read(0, &Request::GetAllChildrenNumber { path }).expect(path);
        assert_eq!(reply, i32::to_be_bytes(count), "{path}");
    }
}

#[test]
fn ephemerals_of_the_session_are_listed_by_prefix() {
    let mut replica = Replica::new();
    let (session, other) = (replica.connect(), replica.connect());
    for path in ["/ea", "/eb", "/f"] {
        assert!(replica.write(session, &create(path, 1)).is_ok());
    }
    let list = |session, prefix| {
        strings(&replica.read(session, &Request::GetEphemerals { prefix }).expect("a list"))
    };
    for all in [None, Some(""), Some("/"), Some(" / ")] {
        assert_eq!(list(session, all), ["/ea", "/eb", "/f"], "{all:?}");
    }
    assert_eq!(list(session, Some("/e")), ["/ea", "/eb"]);
    assert_eq!(list(other, None), [""; 0]);
    assert_eq!(list(12345, None), [""; 0]);
}

#[test]
fn each_read_of_a_multi_has_a_result_of_its_own() {
    let mut replica = Replica::new();
    replica.create("/a");
    let request = Request::MultiRead(vec![
        Request::GetData { path: "/none", watch: false },
        Request::GetData { path: "/a", watch: false },
        Request::GetChildren { path: "/zookeeper/quota", watch: false },
    ]);
    let reply = replica.read(0, &request).expect("results");
    let mut reader = Reader::new(&reply);
    let header = |reader: &mut Reader<'_>| {
        (reader.int().expect("code"), reader.boolean().expect("end"), reader.int().expect("error"))
    };
    assert_eq!((header(&mut reader), reader.int()), ((-1, false, -101), Ok(-101)));
    assert_eq!(header(&mut reader), (4, false, 0));
    assert_eq!(reader.buffer(), Ok(Some(&b"x"[..])));
    assert_eq!(Stat::decode(&mut reader), Ok(replica.stat("/a")));
    assert_eq!((header(&mut reader), reader.int()), ((8, false, 0), Ok(0)));
    assert_eq!(header(&mut reader), (-1, true, -1));
    assert!(reader.rest().is_empty());
}

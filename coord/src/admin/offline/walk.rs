//! All nodes of a state, one after another, as a client that may read everything sees them.

use millrace_proto::zookeeper::{Acl, Reader, Request, Stat, Writer};

use crate::state::State;
use crate::state::read::read;

/// One node.
pub struct OfflineNode<'a> {
    pub path: &'a str,
    pub stat: Stat,
    /// `None` is null data, which differs from empty data.
    pub data: Option<&'a [u8]>,
    pub acl: Vec<Acl<'a>>,
}

/// Shows every node, parents before their children, children in the order of their names, until `show`
/// fails.
///
/// # Errors
/// The first error of `show`.
pub fn walk<E>(
    state: &State,
    mut show: impl FnMut(&OfflineNode<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut waiting = vec!["/".to_owned()];
    let (mut data, mut acl, mut children) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(path) = waiting.pop() {
        answer(state, &Request::GetData { path: &path, watch: false }, &mut data);
        answer(state, &Request::GetAcl { path: &path }, &mut acl);
        answer(state, &Request::GetChildren { path: &path, watch: false }, &mut children);
        let mut reader = Reader::new(&data);
        let own = "what was just written is readable";
        let node = OfflineNode {
            path: &path,
            data: reader.buffer().expect(own),
            stat: Stat::decode(&mut reader).expect(own),
            acl: Reader::new(&acl).list(Acl::decode).expect(own).unwrap_or_default(),
        };
        show(&node)?;
        let mut reader = Reader::new(&children);
        let mut names = reader.list(|reader| reader.text()).expect(own).unwrap_or_default();
        names.sort_unstable();
        let parent = path.trim_end_matches('/');
        waiting.extend(names.iter().rev().map(|name| format!("{parent}/{name}")));
    }
    Ok(())
}

fn answer(state: &State, request: &Request<'_>, out: &mut Vec<u8>) {
    out.clear();
    let done = read(state, request, 0, &[], true, &mut Writer::new(out));
    done.expect("a reader that needs no permission reads what is there");
}

//! What a node believes, and which peers may change things: it believes no connection because of where
//! it comes from.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use millrace_client::{Client, ClientConfig, Secret};
use millrace_proto::cluster::{
    ArchivedRingReply, DrainRequest, InventoryRequest, Mount, MountRequest, PinRequest, RingRequest,
};
use millrace_proto::message::{ArchivedAttachReply, FreeRequest};
use millrace_proto::proof::{ChallengeRequest, Proof, Role};
use millrace_proto::zookeeper::Error;
use millrace_proto::{Op, Status, frame};
use millrace_tests::coord::Failure;
use millrace_tests::process::{Process, program};
use millrace_tests::{Cluster, Node, NodeOptions, Peer, Scratch, content, wait_until};

/// Returns the ports at which a process listens over TCP, as proc(5) shows: its sockets, looked up in
/// its tables.
fn listening_ports(process: u32) -> BTreeSet<u16> {
    let links = std::fs::read_dir(format!("/proc/{process}/fd")).expect("the node's descriptors");
    let sockets: BTreeSet<String> = links
        .filter_map(|link| std::fs::read_link(link.ok()?.path()).ok())
        .filter_map(|link| {
            let link = link.to_str()?.strip_prefix("socket:[")?;
            link.strip_suffix(']').map(str::to_owned)
        })
        .collect();
    let mut ports = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let table = std::fs::read_to_string(format!("/proc/{process}/net/{table}"));
        for line in table.unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Fields: local address, state (0A listens), inode.
            if fields.len() > 9 && fields[3] == "0A" && sockets.contains(fields[9]) {
                let port = fields[1].rsplit_once(':').expect("an address").1;
                ports.insert(u16::from_str_radix(port, 16).expect("a port"));
            }
        }
    }
    ports
}

#[test]
fn a_node_alone_listens_at_its_own_port_and_no_other() {
    let scratch = Scratch::new();
    scratch.file("a", 1000);
    let node = Node::serve(scratch.root());
    assert!(node.peer().counter("cluster_epoch") > 0, "it is a cluster of one node");
    assert_eq!(listening_ports(node.id()), BTreeSet::from([node.address().port()]));
    node.stop();
}

#[test]
fn who_has_proved_nothing_reads_and_changes_nothing() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    scratch.file("a", 1000);
    other.file("secret", 1000);
    let node = NodeOptions::new(scratch.root()).set("mount_root", "/").start();
    let mount = Mount {
        prefix: "x".to_owned(),
        source: format!("file://{}", other.root().display()),
        replicas: 1,
    };
    let mount = MountRequest { mount, remove: 0 };
    let mut peer = node.peer();
    let entry = peer.stat("a").expect("it may look");
    content::check("a", 0, &peer.read(&entry, 0, 1000).expect("and read"));
    let refused = [
        peer.ask(Op::Mount, &mount),
        peer.ask(Op::Drain, &DrainRequest { node: "n".to_owned(), undo: 0 }),
        peer.ask(Op::Pin, &PinRequest { path: "a".to_owned(), undo: 0 }),
        peer.ask(Op::Free, &FreeRequest { path: "a".to_owned() }),
        peer.ask(Op::Inventory, &InventoryRequest { key: 1, epoch: 0, cursor: 0 }),
    ];
    for reply in refused {
        assert_eq!(reply.status(), Status::PermissionDenied, "{}", reply.message());
        assert!(reply.message().contains("(--"), "where to go: {}", reply.message());
    }
    assert_eq!(peer.prove(Role::Administrator, &Cluster::secret()), Status::PermissionDenied);
    assert_eq!(peer.stat("x/secret"), Err(Status::NotFound));
    let mut administrator = node.administrator();
    assert_eq!(administrator.ask(Op::Mount, &mount).status(), Status::Ok);
    assert!(peer.stat("x/secret").is_ok());
    node.stop();
}

#[test]
fn a_source_outside_of_the_mount_roots_is_mounted_by_nobody() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    scratch.file("a", 1000);
    other.file("secret", 1000);
    std::os::unix::fs::symlink(other.root(), scratch.at("way-out")).expect("make a link");
    let node = Node::serve(scratch.root());
    let mut administrator = node.administrator();
    let mut mount = |source: String| {
        let mount = Mount { prefix: "x".to_owned(), source, replicas: 1 };
        administrator.ask(Op::Mount, &MountRequest { mount, remove: 0 })
    };
    for source in ["file:///".to_owned(), format!("file://{}", other.root().display())] {
        let reply = mount(source);
        assert_eq!(reply.status(), Status::PermissionDenied);
        assert!(reply.message().contains("--mount-root"), "{}", reply.message());
    }
    // By its name it lies below the root; the node finds where it leads when it opens it.
    assert_eq!(mount(format!("file://{}/way-out", scratch.root().display())).status(), Status::Ok);
    let mut peer = node.peer();
    assert_eq!(peer.stat("x/secret"), Err(Status::PermissionDenied));
    assert!(peer.stat("a").is_ok());
    node.stop();
}

#[test]
fn over_tcp_a_token_makes_an_administrator() {
    let scratch = Scratch::new();
    scratch.file("a", 1000);
    let token = scratch.root().with_extension("token");
    std::fs::write(&token, "a token of administrators\n").expect("write");
    let options = || NodeOptions::new(scratch.root()).set("admin_token", token.display());
    std::fs::set_permissions(&token, Permissions::from_mode(0o644)).expect("set a mode");
    let told = options().start_in_vain();
    assert!(told.contains("chmod 600"), "{told}");
    std::fs::set_permissions(&token, Permissions::from_mode(0o600)).expect("set a mode");
    let node = options().set("admin", "").start();
    let pin = PinRequest { path: "a".to_owned(), undo: 0 };
    let secret = |text: &str| Secret::parse(text.as_bytes()).expect("long enough");
    let mut peer = node.peer();
    let wrong = peer.prove(Role::Administrator, &secret("another token, wrong"));
    assert_eq!(wrong, Status::PermissionDenied);
    assert_eq!(
        peer.prove(Role::Member, &secret("a token of administrators")),
        Status::PermissionDenied
    );
    assert_eq!(peer.ask(Op::Pin, &pin).status(), Status::PermissionDenied);
    // Without a challenge of its own a proof proves nothing.
    assert_eq!(peer.ask(Op::Prove, &Proof { mac: [0; 32] }).status(), Status::PermissionDenied);
    assert_eq!(peer.prove(Role::Administrator, &secret("a token of administrators")), Status::Ok);
    assert_eq!(peer.ask(Op::Pin, &pin).status(), Status::Ok);
    assert_eq!(node.peer().ask(Op::Pin, &pin).status(), Status::PermissionDenied, "for this one");
    // The tool is told the same.
    let mut command = Command::new(program().expect("the program"));
    let address = node.address().to_string();
    command.args(["admin", "unpin", "a", "--node", &address, "--admin-token"]).arg(&token);
    let output = command.output().expect("run the tool");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    node.stop();
    std::fs::remove_file(&token).expect("remove it");
}

#[test]
fn members_recognise_each_other_by_the_secret() {
    let scratch = Scratch::new();
    scratch.file("a", 200_000);
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    let request = InventoryRequest { key: 1, epoch: 0, cursor: 0 };
    let mut stranger = cluster.members[0].node().peer();
    assert_eq!(stranger.ask(Op::Inventory, &request).status(), Status::PermissionDenied);
    let mut member = cluster.members[0].peer_as_member();
    assert_eq!(member.ask(Op::Inventory, &request).status(), Status::Ok);
    // Requests of members are for the master, and other nodes do not pass them on.
    let pin = PinRequest { path: "a".to_owned(), undo: 0 };
    let statuses: Vec<Status> = cluster
        .members
        .iter_mut()
        .map(|member| {
            assert_eq!(member.node().peer().ask(Op::Pin, &pin).status(), Status::PermissionDenied);
            member.peer_as_member().ask(Op::Pin, &pin).status()
        })
        .collect();
    assert_eq!(statuses.iter().filter(|it| **it == Status::NotMaster).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|it| **it == Status::Ok).count(), 1, "{statuses:?}");
    // Another run of the node is meant.
    let challenge = ChallengeRequest { role: Role::Member as u8, node: 1, nonce: [0; 32] };
    assert_eq!(stranger.ask(Op::Challenge, &challenge).status(), Status::PermissionDenied);
    let unknown = ChallengeRequest { role: 9, node: 0, nonce: [0; 32] };
    assert_eq!(stranger.ask(Op::Challenge, &unknown).status(), Status::InvalidArgument);
}

/// Returns the ids of the members that a node believes.
fn ids_in_ring(peer: &mut Peer) -> Vec<String> {
    let reply = peer.ask(Op::Ring, &RingRequest { epoch: 0, first: 0, wait: 0 });
    let ring = frame::body::<ArchivedRingReply>(&reply.body).expect("a ring");
    ring.members.iter().map(|member| member.id.as_str().to_owned()).collect()
}

#[test]
fn a_client_without_the_secret_writes_nothing_of_a_cluster_and_registers_no_member() {
    let scratch = Scratch::new();
    scratch.file("a", 200_000);
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    let replica = &cluster.coord.as_ref().expect("coordination").replicas[0];
    let mut stranger = replica.client();
    let ids = stranger.children("/millrace/members", false).expect("clients look for nodes so");
    assert_eq!(ids.len(), 2);
    assert!(stranger.get("/millrace/members/node-1", false).is_ok());
    let denied = |done: Result<(), Failure>| {
        assert!(done.as_ref().is_err_and(|it| it.is(Error::NoAuth)), "{done:?}");
    };
    let rogue = br#"{"id":"rogue","secret":"x","run":"1","weight":16777216,"address":"127.0.0.1:1",
        "shards":["127.0.0.1:1"],"capacity":1}"#;
    denied(stranger.make("/millrace/members/rogue", rogue));
    denied(stranger.make("/millrace/drains/node-1", b""));
    denied(stranger.make("/millrace/master/latch-0000000000", b"rogue"));
    denied(stranger.make("/millrace/more", b""));
    denied(stranger.set("/millrace/mounts", b"{}", -1).map(drop));
    denied(stranger.set("/millrace/members/node-1", rogue, -1).map(drop));
    denied(stranger.delete("/millrace/members/node-1", -1));
    for private in ["/millrace/mounts", "/millrace/cluster", "/millrace/master/term"] {
        denied(stranger.get(private, false).map(drop));
    }
    // The client controls the coordination service, and does not know the secret.
    let epoch = cluster.members[0].counter("cluster_epoch");
    let mut powerful = replica.client();
    Cluster::authorize(&mut powerful);
    powerful.make("/millrace/members/rogue", rogue).expect("create");
    wait_until("it was seen", || cluster.members[0].counter("cluster_epoch") > epoch);
    for member in &mut cluster.members {
        let mut peer = member.node().peer();
        assert_eq!(ids_in_ring(&mut peer), ["node-1", "node-2"], "the rogue is not believed");
        let entry = peer.stat("a").expect("a file");
        content::check("a", 0, &peer.read(&entry, 0, 5000).expect("read"));
    }
}

#[test]
fn the_record_of_a_member_that_has_left_is_not_believed_again() {
    let scratch = Scratch::new();
    scratch.file("a", 200_000);
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    let replica = &cluster.coord.as_ref().expect("coordination").replicas[0];
    let mut stranger = replica.client();
    let (record, _) = stranger.get("/millrace/members/node-2", false).expect("clients look so");
    let record = record.expect("a record");
    // The client may write in coordination, and does not know the secret.
    let mut powerful = replica.client();
    Cluster::authorize(&mut powerful);
    cluster.members[1].stop();
    for mode in [0, 1] {
        let epoch = cluster.members[0].counter("cluster_epoch");
        // The records stay for good, or as long as another session lasts.
        powerful.create("/millrace/members/node-2", &record, mode).expect("create");
        wait_until("it was seen", || cluster.members[0].counter("cluster_epoch") > epoch);
        let mut peer = cluster.members[0].node().peer();
        assert_eq!(ids_in_ring(&mut peer), ["node-1"], "mode {mode}");
        powerful.delete("/millrace/members/node-2", -1).expect("delete");
    }
    // The member itself comes back.
    cluster.members[1].start();
    cluster.wait_settled();
    assert_eq!(ids_in_ring(&mut cluster.members[0].node().peer()).len(), 2);
}

#[test]
fn a_name_that_another_user_has_taken_is_not_the_node() {
    if !rustix::process::geteuid().is_root() {
        // Only root can act as another user.
        return;
    }
    const TAKER: &str = r#"
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.bind("\0" + sys.argv[1][1:]); s.listen(9)
print("takes the name", flush=True)
c, _ = s.accept(); c.settimeout(20)
try: print("told", len(c.recv(4096)), flush=True)
except OSError: print("told 0", flush=True)
"#;
    let scratch = Scratch::new();
    scratch.file("a", 1000);
    let mut node = Node::serve(scratch.root());
    let name = socket_of(&node);
    node.kill();
    let mut taker = Command::new("python3");
    let mut taker =
        Process::spawn("the taker", taker.arg("-c").arg(TAKER).arg(&name)).expect("start");
    taker.wait_for_line("takes the name").expect("bind");
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let config = ClientConfig { deadline: Duration::from_secs(2), ..ClientConfig::new() };
    let client = runtime.block_on(Client::connect(format!("unix:{name}"), config));
    assert!(client.is_err(), "{client:?}");
    assert_eq!(taker.wait_for_line("told ").expect("its end"), "0", "bytes that it got");
}

#[test]
fn a_cluster_is_formed_with_one_secret_or_said_to_be_insecure() {
    let scratch = Scratch::new();
    scratch.file("a", 1000);
    let mut cluster = Cluster::start(1, 1, scratch.root());
    cluster.wait_settled();
    let other = scratch.root().with_extension("secret");
    std::fs::write(&other, "the secret of another cluster").expect("write");
    std::fs::set_permissions(&other, Permissions::from_mode(0o600)).expect("set a mode");
    let member = cluster.add();
    member.set("coord_secret", "");
    let told = member.start_in_vain();
    assert!(told.contains("--coord-secret") && told.contains("--insecure"), "{told}");
    member.set("insecure", true);
    let told = member.start_in_vain();
    assert!(told.contains("was made with a secret, and this node has none"), "{told}");
    member.set("insecure", false);
    member.set("coord_secret", other.display());
    let told = member.start_in_vain();
    assert!(told.contains("was made without the secret that this node has"), "{told}");
    cluster.members[0].stop();
    // A record that any client could have made does not begin a cluster.
    let replica = &cluster.coord.as_ref().expect("coordination").replicas[0];
    let mut stranger = replica.client();
    stranger.make("/squatted", b"").expect("create");
    let mut second = Cluster::over(&[replica.address()], "/squatted", scratch.root());
    stranger
        .make("/squatted/cluster", br#"{"format":1,"id":"theirs","block_size":65536}"#)
        .unwrap();
    let member = second.add();
    let told = member.start_in_vain();
    assert!(told.contains("was made without the secret"), "{told}");
    // Nor does it count for the cluster of which the node is a member from then on.
    member.set("coord", format!("zk://{}/another", replica.address()));
    member.start();
    member.stop();
    let mut insecure = Cluster::over(&[replica.address()], "/insecure", scratch.root());
    for _ in 0..2 {
        let member = insecure.add();
        member.set("coord_secret", "");
        member.set("insecure", true);
        member.start();
    }
    insecure.wait_settled();
    let request = InventoryRequest { key: 1, epoch: 0, cursor: 0 };
    let mut peer = insecure.members[0].node().peer();
    assert_eq!(peer.ask(Op::Inventory, &request).status(), Status::Ok);
    assert_eq!(
        peer.ask(Op::Pin, &PinRequest { path: "a".to_owned(), undo: 0 }).status(),
        Status::PermissionDenied,
        "changes still need the socket"
    );
    let free = FreeRequest { path: "a".to_owned() };
    let freed = insecure.members[0].node().administrator().ask(Op::Free, &free);
    assert_eq!(freed.status(), Status::PermissionDenied, "the other member has no proof of it");
    std::fs::remove_file(&other).expect("remove it");
}

/// Runs a program that speaks to the node as another user of the machine: it connects to each of these
/// sockets, and this returns what `Attach` was answered and how many descriptors came.
fn attached_as_nobody(sockets: &[String]) -> String {
    const PROGRAM: &str = r#"
import array, os, socket, struct, sys, zlib
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
head = struct.pack("<IBBHHHIIIQI", 0x524c494d, 1, 10, 0, 0, 0, 0, 0, 0, 1, 0)
frame = head + struct.pack("<I", zlib.crc32(head))
told = []
for place in sys.argv[1:]:
    try:
        s = socket.socket(socket.AF_UNIX); s.settimeout(20)
        s.connect("\0" + place[1:] if place[0] == "@" else place)
        try: s.sendall(frame)
        except BrokenPipeError: pass  # refused already: the reply waits
        data, ancillary, _, _ = s.recvmsg(65536, socket.CMSG_SPACE(4))
        status = struct.unpack_from("<H", data, 8)[0] if len(data) >= 40 else "none"
        told.append("%s:%d" % (status, len(ancillary)))
    except OSError as error:
        told.append(type(error).__name__)
print(" ".join(told))
"#;
    let output = Command::new("python3").arg("-c").arg(PROGRAM).args(sockets).output();
    let output = output.expect("run python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// Returns the first of the node's sockets for clients on its machine.
fn socket_of(node: &Node) -> String {
    let mut peer = node.peer();
    peer.send_empty(Op::Attach);
    let reply = peer.receive();
    let reply = frame::body::<ArchivedAttachReply>(&reply.body).expect("an answer to Attach");
    reply.shards[0].as_str().strip_prefix("unix:").expect("a Unix socket").to_owned()
}

#[test]
fn the_memory_is_for_the_users_that_are_named_and_for_no_others() {
    if !rustix::process::geteuid().is_root() {
        // Only root can act as another user.
        return;
    }
    let scratch = Scratch::new();
    scratch.file("a", 1000);
    let open = Permissions::from_mode(0o755);
    std::fs::set_permissions(scratch.root(), open).expect("set a mode");
    let path = scratch.root().join("sock").display().to_string();
    let options = || NodeOptions::new(scratch.root());
    let refused = (Status::PermissionDenied as u16).to_string();
    let cases = [
        (options(), format!("{refused}:0")),
        (options().set("socket_mode", "666"), "0:1".to_owned()),
        (options().set("socket_group", "65534"), "0:1".to_owned()),
        (options().set("socket_user", "65534").set("socket_mode", "600"), "0:1".to_owned()),
        (options().set("socket", &path), "PermissionError".to_owned()),
        (options().set("socket", &path).set("socket_mode", "666"), "0:1".to_owned()),
        (options().set("socket", &path).set("socket_group", "65534"), "0:1".to_owned()),
    ];
    for (options, expect) in cases {
        let node = options.start();
        assert_eq!(attached_as_nobody(&[socket_of(&node)]), expect, "{options:?}");
        node.stop();
    }
    let told = options().set("socket_user", "unknown-user").start_in_vain();
    assert!(told.contains("unknown-user"), "{told}");
}

#[test]
fn the_administration_socket_is_for_the_user_of_the_node_alone() {
    let scratch = Scratch::new();
    scratch.file("a", 1000);
    let node = Node::serve(scratch.root());
    let place = node.admin_path();
    let mode = std::fs::symlink_metadata(&place).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    if rustix::process::geteuid().is_root() {
        let above = place.parent().expect("a directory");
        std::fs::set_permissions(above, Permissions::from_mode(0o755)).expect("set a mode");
        assert_eq!(attached_as_nobody(&[place.display().to_string()]), "PermissionError");
    }
    node.stop();
}

//! Credentials by name: which node may read which mount, and what is told where one is missing or wrong.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use millrace_client::{Client, ClientConfig, MountInfo, Status};
use millrace_proto::Op;
use millrace_proto::message::StatRequest;
use millrace_tests::origin::Origin;
use millrace_tests::process::program;
use millrace_tests::{Cluster, HANG_GUARD, NodeOptions, Scratch, wait_until};
use tempfile::TempDir;

/// Writes a file that only its owner may read, or that all users may.
fn write(directory: &TempDir, name: &str, text: &str, mode: u32) -> PathBuf {
    let file = directory.path().join(name);
    std::fs::write(&file, text).expect("write a file");
    std::fs::set_permissions(&file, Permissions::from_mode(mode)).expect("set a mode");
    file
}

/// Returns the table of a credential for this store.
fn table(name: &str, origin: &Origin, access_key: &str) -> String {
    format!(
        "[credential.{name}]\nendpoint = \"{}\"\nregion = \"eu\"\naccess_key_id = \"{access_key}\"\n\
         secret_access_key = \"hush-hush\"\n",
        origin.url()
    )
}

fn locked(bucket: &str, access_key: &str) -> Origin {
    let origin = Origin::start();
    origin.put(bucket, "it", vec![1; 1000]);
    origin.require_key(bucket, access_key);
    origin
}

async fn read(client: &Client, path: &str) -> Result<Vec<u8>, millrace_client::Error> {
    let file = client.stat(path).await?;
    Ok(client.read(&file, 0, u64::MAX).await?.to_vec())
}

/// Waits until a mount has come to the client's node.
async fn until_seen(client: &Client, path: &str) {
    let seen = async {
        while client.stat(path).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(HANG_GUARD, seen).await.expect("it is mounted");
}

/// Variables with which no credential of the machine's user is found.
fn nothing_else() -> [(&'static str, String); 3] {
    let nowhere = || "/nonexistent".to_owned();
    [
        ("AWS_SHARED_CREDENTIALS_FILE", nowhere()),
        ("AWS_CONFIG_FILE", nowhere()),
        ("AWS_REGION", "eu".into()),
    ]
}

#[tokio::test]
async fn a_source_is_opened_with_the_credential_that_it_names() {
    let (directory, origin) = (TempDir::new().expect("a directory"), locked("box", "ALPHA"));
    let text = table("prod", &origin, "ALPHA") + &table("wrong", &origin, "OMEGA");
    let file = write(&directory, "it.toml", &text, 0o600);
    let options = NodeOptions::new(Path::new("s3://box"))
        .set("config", file.display())
        .set("source_timeout_ms", 2000)
        .environment(nothing_else());
    let node = options.clone().set("source_credential", "prod").start();
    assert_eq!(read(&node.client().await, "it").await.expect("read"), vec![1; 1000]);
    let mounts = node.client().await.cluster().expect("a cluster").mounts;
    assert_eq!(mounts[0].source, "s3://box?credential=prod");
    node.stop();
    for (name, reason) in [
        ("wrong", "the store does not know the access key"),
        ("other", "it needs the credential other, which this node does not have"),
    ] {
        let told = options.clone().set("source_credential", name).start_in_vain();
        assert!(told.contains(reason), "{name}: {told}");
    }
    assert!(options.set("source_credential", "a/b").start_in_vain().contains("not allowed"));
}

#[test]
fn a_file_with_secrets_is_refused_if_all_may_read_it_and_never_shown() {
    let (directory, origin) = (TempDir::new().expect("a directory"), locked("box", "ALPHA"));
    let text = table("prod", &origin, "ALPHA");
    let open = write(&directory, "open.toml", &text, 0o644);
    let print = |file: &Path| -> Output {
        let mut command = Command::new(program().expect("a binary"));
        command.args(["node", "--source", "s3://box", "--print-config", "--config"]).arg(file);
        command.output().expect("run the program")
    };
    let output = print(&open);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("chmod 600"), "{told}");
    let closed = write(&directory, "closed.toml", &text, 0o600);
    let output = print(&closed);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(!told.contains("hush-hush") && !told.contains("ALPHA"), "{told}");
    for line in ["[credential.\"prod\"]", "region = \"eu\"", "# secret_access_key = (a secret"] {
        assert!(told.contains(line), "no {line} in {told}");
    }
    let odd = write(&directory, "odd.toml", "[credential.prod]\ncolour = \"red\"\n", 0o600);
    let options = NodeOptions::new(Path::new("s3://box")).set("config", odd.display());
    let told = options.start_in_vain();
    assert!(told.contains("key colour of [credential.prod] is not one of any store"), "{told}");
}

#[tokio::test]
async fn a_mount_needs_its_credential_and_others_go_on() {
    let (directory, scratch) = (TempDir::new().expect("a directory"), Scratch::new());
    let (first, second) = (locked("one", "ALPHA"), locked("two", "BETA"));
    scratch.write("own", b"own");
    let text = table("first", &first, "ALPHA") + &table("second", &second, "BETA");
    let file = write(&directory, "it.toml", &text, 0o600);
    let roots = format!("{}:s3://one:s3://two:http://", scratch.root().display());
    let web = format!("{}/one", second.url());
    second.put("one", "page", vec![2; 1000]);
    let node = NodeOptions::new(scratch.root())
        .set("config", file.display())
        .set("mount_root", roots.replace("http://", &web))
        .environment(nothing_else())
        .start();
    let client = node.client().await;
    let mount = async |path: &str, source: &str| {
        client.mount(&MountInfo::new(path, source, 1)).await.map_err(|error| error.to_string())
    };
    mount("a", "s3://one?credential=first").await.expect("mount");
    mount("b", "s3://two?credential=second").await.expect("mount");
    // Its options are not those of the stores beside it.
    mount("web", &web).await.expect("mount");
    let told = mount("c", "s3://two?credential=third").await.expect_err("it has no such table");
    assert!(told.contains("add a table [credential.third]"), "{told}");
    let own = format!("file://{}?credential=first", scratch.root().display());
    let told = mount("c", &own).await.expect_err("a directory");
    assert!(told.contains("a directory takes no credential"), "{told}");
    let told = mount("c", "s3://two?colour=red").await.expect_err("no option");
    assert!(told.contains("'colour=red' is not an option of a mount"), "{told}");
    for (path, byte) in [("a/it", 1), ("b/it", 1), ("web/page", 2)] {
        until_seen(&client, path).await;
        assert_eq!(read(&client, path).await.expect(path), vec![byte; 1000]);
    }
    assert_eq!(read(&client, "own").await.expect("read"), b"own");
    node.stop();
}

#[tokio::test]
async fn a_node_without_the_credential_says_which_one_it_lacks() {
    let (directory, scratch) = (TempDir::new().expect("a directory"), Scratch::new());
    let origin = locked("box", "ALPHA");
    scratch.write("own", b"own");
    let file = write(&directory, "it.toml", &table("prod", &origin, "ALPHA"), 0o600);
    let mut cluster = Cluster::start(1, 0, scratch.root());
    for has_it in [true, false] {
        let member = cluster.add();
        member.set("mount_root", format!("{}:s3://box", scratch.root().display()));
        member.set_environment(nothing_else());
        if has_it {
            member.set("config", file.display());
        }
        member.start();
    }
    cluster.wait_settled();
    let client = cluster.client().await;
    let mount = MountInfo::new("lake", "s3://box?credential=prod", 1);
    client.mount(&mount).await.expect("the first node has it");
    cluster.wait_settled();
    let request = StatRequest { path: "lake/it".to_owned() };
    let peer = |cluster: &mut Cluster| cluster.members[1].node().peer();
    wait_until("the other node knows the mount", || {
        peer(&mut cluster).ask(Op::Stat, &request).status() != Status::NotFound
    });
    let told = peer(&mut cluster).ask(Op::Stat, &request).message();
    assert!(told.contains("credential prod") && told.contains("[credential.prod]"), "{told}");
    assert_eq!(read(&client, "lake/it").await.expect("the other node has it"), vec![1; 1000]);
    assert_eq!(read(&client, "own").await.expect("read"), b"own");
    let log = cluster.members[1].node().log();
    assert!(log.contains("mount s3://box?credential=prod at '/lake': it needs"), "{log}");
    // A change that is asked of that node is refused, too.
    let admin = format!("unix:{}", cluster.members[1].node().admin_path().display());
    let config = ClientConfig { admin: Some(admin), ..ClientConfig::new() };
    let client = cluster.client_with(config).await;
    let refused = client.mount(&MountInfo::new("more", "s3://box?credential=prod", 1)).await;
    let error = refused.expect_err("it lacks it");
    assert_eq!(error.status(), Some(Status::PermissionDenied), "{error}");
    assert!(error.to_string().contains("credential prod"), "{error}");
}

#[tokio::test]
async fn a_profile_of_the_aws_tools_is_used() {
    let (directory, origin) = (TempDir::new().expect("a directory"), locked("box", "ALPHA"));
    let keys = |name: &str, key: &str| {
        format!("[{name}]\naws_access_key_id = {key}\naws_secret_access_key = hush\n")
    };
    let credentials = keys("default", "OMEGA") + &keys("prod", "ALPHA");
    let credentials = write(&directory, "credentials", &credentials, 0o600);
    let config = write(&directory, "config", "[profile prod]\nregion = eu-west-1\n", 0o600);
    let options = |profile: &str| {
        NodeOptions::new(Path::new("s3://box"))
            .set("source_option", format!("endpoint={}", origin.url()))
            .environment([
                ("AWS_SHARED_CREDENTIALS_FILE", credentials.display().to_string()),
                ("AWS_CONFIG_FILE", config.display().to_string()),
                ("AWS_PROFILE", profile.to_owned()),
            ])
    };
    let node = options("prod").start();
    assert_eq!(read(&node.client().await, "it").await.expect("read"), vec![1; 1000]);
    node.stop();
    let told = options("default").start_in_vain();
    assert!(told.contains("the store does not know the access key"), "{told}");
    let told = options("none").start_in_vain();
    assert!(told.contains("there is no profile none in "), "{told}");
    // A credential may name one, too.
    let text = format!("[credential.mine]\nprofile = \"prod\"\nendpoint = \"{}\"\n", origin.url());
    let file = write(&directory, "it.toml", &text, 0o644);
    let options = NodeOptions::new(Path::new("s3://box"))
        .set("config", file.display())
        .set("source_credential", "mine")
        .environment([
            ("AWS_SHARED_CREDENTIALS_FILE", credentials.display().to_string()),
            ("AWS_CONFIG_FILE", config.display().to_string()),
        ]);
    let node = options.start();
    assert_eq!(read(&node.client().await, "it").await.expect("read"), vec![1; 1000]);
    node.stop();
}

#[test]
fn a_profile_file_that_is_cut_is_told() {
    let (directory, origin) = (TempDir::new().expect("a directory"), locked("box", "ALPHA"));
    let whole = "[default]\naws_access_key_id = OMEGA\naws_secret_access_key = hush\n\
                 [prod]\naws_access_key_id = ALPHA\naws_secret_access_key = hush\n";
    for (last, reason) in [
        ("[pro", "there is no profile prod in "),
        ("= ALPHA\naws_secret_acc", "Missing SecretAccessKey"),
        ("= ALP", "Missing SecretAccessKey"),
    ] {
        let end = whole.rfind(last).expect("a part of it") + last.len();
        let credentials = write(&directory, "credentials", &whole[..end], 0o600);
        let told = NodeOptions::new(Path::new("s3://box"))
            .set("source_option", format!("endpoint={}", origin.url()))
            .set("source_timeout_ms", 2000)
            .environment(nothing_else())
            .environment([
                ("AWS_SHARED_CREDENTIALS_FILE", credentials.display().to_string()),
                ("AWS_PROFILE", "prod".to_owned()),
            ])
            .start_in_vain();
        assert!(told.contains(reason), "{last}: {told}");
        assert!(!told.contains("hush"), "a secret is shown: {told}");
    }
}

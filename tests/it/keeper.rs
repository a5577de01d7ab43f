//! The keeper, as a real process: what it holds outlives whoever put it, and nothing else does.

mod process;

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write, pipe},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        signal::{Signal, kill},
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket,
        },
    },
    unistd::Pid,
};
use s3view::keeper::{
    Client, ClientError, Custodian, EntryName, Link, MAX_ENTRIES, Refusal, State,
};

use self::process::{Keeper, PATIENCE};
use crate::fixture::PROGRAM;

macro_rules! trials {
    ($($name:ident),* $(,)?) => {
        [$((concat!("keeper::", stringify!($name)), $name as fn())),*]
    };
}

/// The cases that run by themselves, and the one that plays the plugin in a process of its own.
pub(crate) fn trials() -> Vec<Trial> {
    let cases = trials![
        a_descriptor_outlives_the_process_that_put_it,
        one_plugin_at_a_time,
        a_release_closes,
        what_no_plugin_takes_is_given_up,
        garbage_ends_a_connection_and_nothing_else,
        a_version_that_is_not_spoken_is_named,
        states_of_any_size_come_back_whole,
        nothing_grows,
        the_socket_is_for_its_owner_alone,
        a_stale_socket_is_replaced_and_a_live_one_is_not,
        another_user_is_refused,
        a_signal_ends_it_and_says_what_it_held,
        wrong_flags_end_with_64,
        the_custodian_hands_over_to_the_next_keeper,
        the_custodian_finds_what_others_left,
        a_mount_lives_as_long_as_its_descriptor_is_held,
    ];
    cases
        .into_iter()
        .map(|(name, case)| {
            Trial::test(name, move || {
                case();
                Ok(())
            })
        })
        .collect()
}

fn name(number: usize) -> EntryName {
    format!("{number:032x}").parse().unwrap()
}

fn state(content: &[u8]) -> State {
    State::new(content).unwrap()
}

fn identity(fd: impl AsFd) -> (u64, u64) {
    let file = File::from(fd.as_fd().try_clone_to_owned().unwrap());
    let found = file.metadata().unwrap();
    (found.dev(), found.ino())
}

#[track_caller]
fn eventually(what: &str, check: impl Fn() -> bool) {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until nobody can write to the pipe any more.
fn closes(mut reader: impl Read + Send + 'static) -> String {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = reader.read_to_string(&mut text);
        send.send(read.map(|_| text))
    });
    receive.recv_timeout(PATIENCE).expect("the pipe is closed").unwrap()
}

/// What this program does as the child of a case: it puts a pipe, says so, and waits to be killed.
pub(crate) fn play_plugin() {
    let Some(path) = std::env::var_os("S3VIEW_TEST_KEEPER") else { return };
    let mut client = Client::connect(path.as_ref(), PATIENCE).unwrap();
    let (reader, writer) = pipe().unwrap();
    (&writer).write_all(b"before").unwrap();
    client.put(name(1), &reader, &state(b"inode 7")).unwrap();
    client.put(name(2), &writer, &state(b"")).unwrap();
    client.update(name(2), &state(b"backing 3")).unwrap();
    let (dev, ino) = identity(&reader);
    let mut stdout = std::io::stdout();
    stdout.write_all(format!("{dev} {ino}\n").as_bytes()).and_then(|()| stdout.flush()).unwrap();
    // Until it is killed, or the case has ended without that.
    std::io::read_to_string(std::io::stdin()).unwrap();
    panic!("the case ended, and this process was not killed");
}

fn a_descriptor_outlives_the_process_that_put_it() {
    let keeper = Keeper::start(&[]);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env("S3VIEW_TEST_KEEPER", keeper.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let mut kept = keeper.connect().take_all().unwrap();
    assert_eq!(kept.len(), 2);
    let (writer, reader) = (kept.pop().unwrap(), kept.pop().unwrap());
    assert_eq!([reader.name, writer.name], [name(1), name(2)]);
    assert_eq!(reader.state.read().unwrap(), b"inode 7");
    assert_eq!(writer.state.read().unwrap(), b"backing 3");
    let (dev, ino) = identity(&reader.fd);
    assert_eq!(line.trim(), format!("{dev} {ino}"), "the same file");
    File::from(writer.fd.try_clone().unwrap()).write_all(b" and after").unwrap();
    let mut client = keeper.connect();
    client.release(name(2)).unwrap();
    drop(writer);
    let reader = File::from(reader.fd.try_clone().unwrap());
    assert_eq!(closes(reader), "before and after");
}

fn one_plugin_at_a_time() {
    let keeper = Keeper::start(&[]);
    let mut first = keeper.connect();
    let error = Client::connect(&keeper.socket(), Duration::from_millis(100)).unwrap_err();
    assert!(matches!(error, ClientError::Refused { refusal: Refusal::Busy, .. }), "{error:?}");
    let told = format!("process {}", std::process::id());
    assert!(error.to_string().contains(&told), "{error}");
    first.put(name(1), pipe().unwrap().0, &state(b"")).unwrap();
    // The second waits a moment, and has what the first left.
    let socket = keeper.socket();
    let second = std::thread::spawn(move || Client::connect(&socket, PATIENCE).unwrap().list());
    std::thread::sleep(Duration::from_millis(50));
    drop(first);
    assert_eq!(second.join().unwrap().unwrap().len(), 1);
}

fn a_release_closes() {
    let keeper = Keeper::start(&[]);
    let mut client = keeper.connect();
    let (reader, writer) = pipe().unwrap();
    client.put(name(1), &writer, &state(b"")).unwrap();
    drop(writer);
    // What replaces it closes it, too.
    let (second, writer) = pipe().unwrap();
    client.put(name(1), &writer, &state(b"")).unwrap();
    drop(writer);
    assert_eq!(closes(reader), "");
    client.release(name(1)).unwrap();
    assert_eq!(closes(second), "");
    for missing in [
        client.release(name(1)).unwrap_err(),
        client.update(name(1), &state(b"")).unwrap_err(),
        client.take(name(1)).unwrap_err(),
    ] {
        assert!(
            matches!(missing, ClientError::Refused { refusal: Refusal::Unknown, .. }),
            "{missing:?}"
        );
        assert!(!missing.ends_connection());
    }
    assert_eq!(client.list().unwrap(), []);
}

fn what_no_plugin_takes_is_given_up() {
    let keeper = Keeper::start(&["--hold-for=500ms"]);
    let mut client = keeper.connect();
    assert_eq!(client.hold_for(), Duration::from_millis(500));
    let (left, writer) = pipe().unwrap();
    client.put(name(1), writer, &state(b"")).unwrap();
    let (taken, writer) = pipe().unwrap();
    client.put(name(2), writer, &state(b"")).unwrap();
    drop(client);
    // Another plugin comes, and takes one of them only.
    let mut client = keeper.connect();
    client.take(name(2)).unwrap();
    assert_eq!(closes(left), "");
    assert_eq!(client.list().unwrap().len(), 1);
    eventually("the log tells", || keeper.log().contains("gave up a descriptor"));
    drop(client);
    assert_eq!(closes(taken), "");
    assert_eq!(keeper.connect().list().unwrap(), []);
}

/// A connection that speaks for itself.
fn raw(keeper: &Keeper) -> OwnedFd {
    use std::os::fd::AsRawFd;
    let began = Instant::now();
    loop {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(&keeper.socket()).unwrap()).unwrap();
        // A greeting, or "another plugin is connected".
        if hear(&fd)[0] == 128 {
            return fd;
        }
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn say(fd: &OwnedFd, bytes: &[u8]) -> nix::Result<usize> {
    use std::os::fd::AsRawFd;
    send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)
}

/// One frame; empty when the connection has ended.
fn hear(fd: &OwnedFd) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let mut bytes = vec![0; 1 << 16];
    let length = recv(fd.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap_or_default();
    bytes.truncate(length);
    bytes
}

const HELLO: &[u8] = b"\x01s3vkeep\n\x01\x00\x01\x00";

fn garbage_ends_a_connection_and_nothing_else() {
    let keeper = Keeper::start(&[]);
    let mut client = keeper.connect();
    client.put(name(1), pipe().unwrap().0, &state(b"kept")).unwrap();
    // With one connection, as at the end.
    let before = keeper.descriptors();
    drop(client);
    let frame = |kind: u8| [&[kind][..], name(1).as_bytes()].concat();
    let mut hostile = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 16 << 10],
        vec![0; 60 << 10],
        vec![1],
        HELLO.to_vec(),
        [HELLO, b"x"].concat(),
        // A put and an update without descriptors.
        frame(2),
        frame(3),
        frame(6)[..32].to_vec(),
    ];
    for _ in 0..200 {
        let length = fastrand::usize(1..3000);
        hostile.push(std::iter::repeat_with(|| fastrand::u8(..)).take(length).collect());
    }
    for bytes in &hostile {
        let fd = raw(&keeper);
        say(&fd, HELLO).unwrap();
        assert_eq!(hear(&fd)[0], 130, "welcome");
        say(&fd, bytes).unwrap();
        let answer = hear(&fd);
        // A random frame may be a good one; then it asks for nothing that is there.
        assert!(answer.is_empty() || answer[0] == 129, "{bytes:?}: {answer:?}");
    }
    // Instead of a hello.
    for bytes in &hostile[..4] {
        let fd = raw(&keeper);
        say(&fd, bytes).unwrap();
        assert!(hear(&fd).is_empty() || hear(&fd).is_empty());
    }
    // One that asks, and does not read.
    let fd = raw(&keeper);
    say(&fd, HELLO).unwrap();
    while say(&fd, &[4]).is_ok() {}
    drop(fd);
    let mut client = keeper.connect();
    assert_eq!(client.take(name(1)).unwrap().state.read().unwrap(), b"kept");
    eventually("no descriptor is left", || keeper.descriptors() == before);
    let log = keeper.log();
    assert!(log.contains("does not read its answers"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

fn a_version_that_is_not_spoken_is_named() {
    let keeper = Keeper::start(&[]);
    let fd = raw(&keeper);
    say(&fd, b"\x01s3vkeep\n\x07\x00\x09\x00").unwrap();
    let answer = hear(&fd);
    let text = String::from_utf8_lossy(&answer[2..]);
    assert_eq!(answer[..2], [129, 3]);
    assert!(text.contains("version 1 ") && text.contains("versions 7 to 9"), "{text}");
    assert!(hear(&fd).is_empty());
    // A newer plugin that still speaks the old version is welcome.
    let fd = raw(&keeper);
    say(&fd, b"\x01s3vkeep\n\x01\x00\x09\x00").unwrap();
    assert_eq!(hear(&fd)[..3], [130, 1, 0]);
    drop(fd);
    // And the other way round: a keeper that this build cannot speak with.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keeper.sock");
    let listener = s3view::socket::bind(&path, s3view::socket::Kind::Messages).unwrap();
    let newer = std::thread::spawn(move || {
        use std::os::fd::AsFd;
        let mut ready = [rustix::event::PollFd::from_borrowed_fd(
            listener.as_fd(),
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut ready, None).unwrap();
        let fd = rustix::net::accept(&listener).unwrap();
        say(&fd, b"\x80s3vkeep\n\x07\x00\x09\x00").unwrap();
        assert!(hear(&fd).is_empty(), "the plugin says no more");
    });
    let error = Client::connect(&path, Duration::ZERO).unwrap_err();
    newer.join().unwrap();
    assert!(matches!(error, ClientError::Versions { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("versions 7 to 9") && text.contains("version 1"), "{text}");
}

fn states_of_any_size_come_back_whole() {
    let keeper = Keeper::start(&[]);
    let before = keeper.memory_kib("VmRSS");
    let large: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(10 << 20).collect();
    let mut client = keeper.connect();
    for (number, content) in [&b""[..], b"x", &large].into_iter().enumerate() {
        client.put(name(number), pipe().unwrap().0, &state(content)).unwrap();
    }
    client.update(name(1), &state(&large)).unwrap();
    drop(client);
    let kept = keeper.connect().take_all().unwrap();
    let expected = [&b""[..], &large, &large];
    for (kept, content) in kept.iter().zip(expected) {
        assert!(kept.state.read().unwrap() == content, "{}", kept.name);
    }
    let grown = keeper.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 2 << 10, "the keeper has grown by {grown} KiB: it reads no state");
}

fn nothing_grows() {
    let keeper = Keeper::start(&[]);
    let mut client = keeper.connect();
    let (reader, content) = (pipe().unwrap().0, state(b"state"));
    let mut round = |count: usize| {
        for number in 0..count {
            client.put(name(number % 100), &reader, &content).unwrap();
            if number % 2 == 1 {
                client.take(name(number % 100)).unwrap();
                client.release(name(number % 100)).unwrap();
                client.release(name((number - 1) % 100)).unwrap();
            }
        }
    };
    round(1000);
    let figures = || (keeper.descriptors(), keeper.memory_kib("RssAnon"));
    let (descriptors, memory) = figures();
    round(10_000);
    assert_eq!(keeper.descriptors(), descriptors);
    let grown = keeper.memory_kib("RssAnon").saturating_sub(memory);
    assert!(grown < 256, "{grown} KiB more than {memory}");
    // As many as fit, and then no more; and all of them in a list and back.
    let error =
        (0..=MAX_ENTRIES).find_map(|number| client.put(name(number), &reader, &content).err());
    let error = error.expect("there is a limit");
    assert!(matches!(error, ClientError::Refused { refusal: Refusal::Full, .. }), "{error:?}");
    assert!(client.list().unwrap().len() > 256, "more than a page");
    eprintln!(
        "note: the keeper holds {} entries with RSS {} KiB, of it anonymous {} KiB; empty {memory} KiB",
        client.list().unwrap().len(),
        keeper.memory_kib("VmRSS"),
        keeper.memory_kib("RssAnon"),
    );
}

fn the_socket_is_for_its_owner_alone() {
    let keeper = Keeper::start(&[]);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(keeper.socket()), 0o600);
    assert_eq!(mode(keeper.directory.path().join("run")), 0o700);
}

fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let mut keeper = Keeper::start(&[]);
    let mut second = Keeper::spawn(&keeper.directory, &[]);
    assert_eq!(second.wait().unwrap().code(), Some(1));
    assert!(keeper.log().contains("another process answers"));
    keeper.restart();
    drop(keeper.connect());
}

fn another_user_is_refused() {
    if !nix::unistd::getuid().is_root() {
        eprintln!("SKIPPED: only root can be another user");
        return;
    }
    let keeper = Keeper::start(&[]);
    // The modes alone would do; here is what comes behind them.
    for (path, mode) in [("", 0o755), ("run", 0o755), ("run/keeper.sock", 0o666)] {
        let path = keeper.directory.path().join(path);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let socket = keeper.socket();
    let other = std::thread::spawn(move || {
        // Of this thread alone, which ends with it.
        match rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)) {
            Ok(()) => Some(Client::connect(&socket, Duration::ZERO).unwrap_err()),
            // A user namespace may map root only.
            Err(_) => None,
        }
    });
    let Some(error) = other.join().unwrap() else {
        eprintln!("SKIPPED: no other user is mapped here");
        return;
    };
    assert!(matches!(error, ClientError::Refused { refusal: Refusal::Denied, .. }), "{error:?}");
    assert!(error.to_string().contains("65534"), "{error}");
    drop(keeper.connect());
}

fn a_signal_ends_it_and_says_what_it_held() {
    let mut keeper = Keeper::start(&[]);
    let (reader, writer) = pipe().unwrap();
    keeper.connect().put(name(1), writer, &state(b"")).unwrap();
    let pid = Pid::from_raw(i32::try_from(keeper.child.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(keeper.child.wait().unwrap().success());
    assert_eq!(closes(reader), "");
    assert!(keeper.log().contains("held=1"), "{}", keeper.log());
}

fn wrong_flags_end_with_64() {
    let run = |arguments: &[&str]| {
        let output = Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let (code, said) = run(&["keeper", "--socket=relative", "--hold-for=0s"]);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("--socket") && said.contains("--hold-for"), "{said}");
    assert_eq!(run(&["keeper", "--hold-for=soon"]).0, Some(64));
    assert_eq!(run(&["keeper", "--endpoint=unix:///x"]).0, Some(64));
    assert_eq!(run(&["--endpoint=unix:///x", "--node-id=n", "keeper"]).0, Some(64));
    let (code, said) = run(&["keeper", "--help"]);
    assert!(
        code == Some(0) && said.contains("--hold-for") && !said.contains("--node-id"),
        "{said}"
    );
}

fn the_custodian_hands_over_to_the_next_keeper() {
    let mut keeper = Keeper::start(&[]);
    let custodian = Custodian::start(keeper.socket()).unwrap();
    assert!(custodian.found(PATIENCE).is_empty());
    let (reader, writer) = pipe().unwrap();
    let fd = Arc::new(OwnedFd::from(reader));
    custodian.put(name(1), Arc::clone(&fd), state(b"first"));
    assert!(custodian.is_held(name(1), PATIENCE));
    keeper.child.kill().unwrap();
    keeper.child.wait().unwrap();
    eventually("it notices", || matches!(custodian.status().link, Link::Away(_)));
    assert!(!custodian.is_held(name(1), PATIENCE), "and does not wait");
    assert_eq!((custodian.status().held, custodian.status().waiting), (0, 1));
    assert!(custodian.update(name(1), state(b"second")));
    custodian.put(name(2), Arc::new(writer.into()), state(b""));
    custodian.release(name(2));
    keeper.child = Keeper::spawn(&keeper.directory, &[]);
    eventually("it hands over again", || custodian.status().held == 1);
    assert_eq!(custodian.status().waiting, 0);
    drop(custodian);
    let kept = keeper.connect().take_all().unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].state.read().unwrap(), b"second");
    assert_eq!(identity(&kept[0].fd), identity(&*fd));
}

fn the_custodian_finds_what_others_left() {
    let mut keeper = Keeper::start(&[]);
    let mut old = keeper.connect();
    let (reader, writer) = pipe().unwrap();
    old.put(name(1), &reader, &state(b"inodes")).unwrap();
    old.put(name(2), writer, &state(b"")).unwrap();
    // The old plugin is still there, for a moment.
    let custodian = Custodian::start(keeper.socket()).unwrap();
    assert!(custodian.found(Duration::from_millis(100)).is_empty());
    drop(old);
    let found = custodian.found(PATIENCE);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].state.read().unwrap(), b"inodes");
    assert_eq!(identity(&found[0].fd), identity(&reader));
    // What cannot be used is released, and closed everywhere.
    custodian.release(name(2));
    drop(found);
    assert_eq!(closes(File::from(OwnedFd::from(reader))), "");
    // What was found is handed over again like what was put.
    keeper.restart();
    eventually("it hands over again", || custodian.is_held(name(1), Duration::ZERO));
    assert_eq!(custodian.status().held, 1);
    assert!(custodian.found(Duration::ZERO).is_empty());
}

/// Unmounts whatever happens.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ended = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn a_mount_lives_as_long_as_its_descriptor_is_held() {
    use std::os::fd::AsRawFd;
    let fuse = match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(fuse) => fuse,
        Err(error) => return eprintln!("SKIPPED: /dev/fuse: {error}"),
    };
    let keeper = Keeper::start(&[]);
    let target = keeper.directory.path().join("mount");
    fs::create_dir(&target).unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if let Err(error) = mount(Some("s3view"), &target, Some("fuse"), flags, Some(&*options)) {
        return eprintln!("SKIPPED: a FUSE mount: {error}");
    }
    let mounted = Mounted(target.clone());
    let mut client = keeper.connect();
    client.put(name(1), &fuse, &state(b"")).unwrap();
    drop((client, fuse));
    // The request that the kernel sent at mount is still there for the next plugin.
    let mut client = keeper.connect();
    let kept = client.take(name(1)).unwrap();
    let mut request = vec![0; 1 << 17];
    let length = File::from(kept.fd.try_clone().unwrap()).read(&mut request).unwrap();
    let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
    assert!(length > 40 && opcode == 26, "FUSE_INIT, not {opcode}");
    // And without the last descriptor nobody waits for ever.
    client.release(name(1)).unwrap();
    drop(kept);
    eventually("the mount is dead", || {
        fs::metadata(&target).is_err_and(|error| error.kind() == ErrorKind::NotConnected)
    });
    drop(mounted);
}

//! Pinned network namespaces on the real kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use runtime::netns;

fn interfaces(path: &std::path::Path) -> String {
    let file = std::fs::File::open(path).unwrap();
    // A thread of its own, so that the test's thread stays where it is.
    std::thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let listening = std::net::UdpSocket::bind("127.0.0.1:0").map(|socket| {
            let to = socket.local_addr().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            socket.send_to(b"x", to).unwrap();
            socket.recv(&mut [0]).is_ok()
        });
        let names = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let names: Vec<&str> = names.lines().skip(2).filter_map(|line| line.split(':').next()).collect();
        format!("{} {listening:?}", names.join(",").replace(' ', ""))
    })
    .join()
    .unwrap()
}

#[test]
fn a_namespace_is_pinned_with_its_loopback_up_and_goes_without_a_trace() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netns");
    let pinned = || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().filter(|line| line.contains(path.to_str().unwrap())).count()
    };
    let own = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    netns::create(&path).unwrap();
    assert!(netns::is_pinned(&path));
    assert_ne!(std::fs::metadata(&path).unwrap().ino(), own);
    assert_eq!(std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino(), own);
    assert_eq!(pinned(), 1);
    let seen = interfaces(&path);
    assert!(seen.starts_with("lo") && seen.ends_with("Ok(true)"), "{seen}");
    let again = netns::create(&path).unwrap_err();
    assert_eq!(again.errno(), Some(rustix::io::Errno::EXIST));
    assert!(netns::is_pinned(&path));
    netns::remove(&path).unwrap();
    netns::remove(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(pinned(), 0);
}

#[test]
fn a_socket_is_in_the_namespace_it_was_made_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netns");
    netns::create(&path).unwrap();
    let listening = |at: Option<&std::path::Path>| {
        let socket = netns::tcp_socket(at, false).unwrap();
        rustix::net::bind(&socket, &std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        std::net::TcpListener::from(socket)
    };
    let (inside, outside) = (listening(Some(&path)), listening(None));
    let reach = |at: Option<&std::path::Path>, listener: &std::net::TcpListener| {
        let socket = netns::tcp_socket(at, false).unwrap();
        rustix::io::ioctl_fionbio(&socket, false).unwrap();
        rustix::net::connect(&socket, &listener.local_addr().unwrap())
    };
    reach(Some(&path), &inside).unwrap();
    reach(None, &outside).unwrap();
    let nobody = rustix::io::Errno::CONNREFUSED;
    // Another namespace's port of the same number is another port; one may be taken by somebody else out here.
    assert_eq!(reach(Some(&path), &outside).err(), Some(nobody));
    assert!(netns::tcp_socket(Some(&path), true).is_ok());
    netns::remove(&path).unwrap();
    assert!(netns::tcp_socket(Some(&path), false).is_err());
}

#[test]
fn a_file_that_pins_nothing_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netns");
    std::fs::write(&path, "").unwrap();
    assert!(!netns::is_pinned(&path));
    netns::remove(&path).unwrap();
    assert!(!path.exists());
    assert!(netns::create(&directory.path().join("absent/netns")).is_err());
}

#[test]
fn the_cost_of_a_namespace() {
    let directory = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for number in 0..20 {
        let path = directory.path().join(number.to_string());
        let before = Instant::now();
        netns::create(&path).unwrap();
        all.push(before.elapsed().as_micros());
        netns::remove(&path).unwrap();
    }
    all.sort_unstable();
    println!("us: netns min {} median {} max {}", all[0], all[10], all[19]);
}

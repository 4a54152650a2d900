//! Servers in network namespaces, and clients that ask them.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Result, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread::Builder;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// In place of a namespace's name: the one that the test runs in.
pub const OWN: &str = "";

/// How long a client waits for an answer. TCP sends a lost first SYN again after 1 s.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `work` in a network namespace. Sockets that `work` opens stay in that namespace, and threads
/// that it starts begin there.
pub fn at<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        if namespace != OWN {
            let file = File::open(format!("/run/netns/{namespace}")).expect(namespace);
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("a thread can move");
        }
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter).join()).expect("the work inside is done")
}

/// Starts servers at `address` in a namespace. They send the namespace's name and the client's
/// address: on TCP port 8080, where they then echo each line, and on UDP port 8053.
pub fn serve(name: &str, address: IpAddr) {
    let (tcp, udp) = at(name, || {
        let tcp = TcpListener::bind((address, 8080)).expect("8080");
        // Nobody is to be kept waiting while the machine is busy.
        rustix::net::listen(&tcp, 4096).expect("a longer queue");
        (tcp, UdpSocket::bind((address, 8053)).expect("8053"))
    });
    let (of_tcp, of_udp) = (name.to_owned(), name.to_owned());
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let name = of_tcp.clone();
            small().spawn(move || drop(answer(&name, stream))).expect("a thread starts");
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{of_udp} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

/// A thread with so small a stack that the next thread gets that of one which has ended: there are
/// hundreds a second.
pub fn small() -> Builder {
    Builder::new().stack_size(128 << 10)
}

fn answer(name: &str, mut stream: TcpStream) -> Result<()> {
    let peer = stream.peer_addr()?.ip();
    stream.write_all(format!("{name} {peer}\n").as_bytes())?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        stream.write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// What a server answers: its name, and the address under which it saw the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub server: String,
    pub client: String,
}

impl Answer {
    fn parse(text: &str) -> Result<Answer> {
        let (server, client) = text.trim().split_once(' ').ok_or(ErrorKind::InvalidData)?;
        Ok(Answer { server: server.into(), client: client.into() })
    }
}

/// Opens a TCP connection from the current namespace. Returns what the server answers, and the
/// connection.
pub fn connect(to: SocketAddr) -> Result<(Answer, TcpStream)> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    // The line is read byte by byte, so that nothing after the first line is consumed.
    while text.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        text.push(byte[0]);
    }
    Ok((Answer::parse(&String::from_utf8_lossy(&text))?, stream))
}

/// Sends a UDP query from the current namespace, from a new source port.
pub fn query(to: SocketAddr) -> Result<Answer> {
    let socket = UdpSocket::bind((any(to.is_ipv6()), 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(b"who")?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    Answer::parse(&String::from_utf8_lossy(&buffer[..length]))
}

/// Sends a line, and waits until it comes back.
pub fn echo(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"still there?\n")?;
    let mut line = String::new();
    BufReader::new(&*stream).read_line(&mut line)?;
    match &*line {
        "still there?\n" => Ok(()),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// Has a line echoed on `stream`. If the stream is not open, opens it first; if it breaks, drops
/// it.
pub fn to_and_fro(stream: &mut Option<TcpStream>, to: SocketAddr) -> Result<()> {
    let mut open = match stream.take() {
        Some(open) => open,
        None => connect(to)?.1,
    };
    echo(&mut open)?;
    *stream = Some(open);
    Ok(())
}

/// The unspecified address, which stands for every address of the namespace.
pub fn any(is_ipv6: bool) -> IpAddr {
    if is_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

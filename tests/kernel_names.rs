//! The DNS name beside an address outside: from the answers that a workload got, and from nowhere else.

use bulkhead::datapath::Answers;
use bulkhead::dns;
use bulkhead::inventory::Posture;
use bulkhead_common::event::Answer;
use bulkhead_tests::talk::done;
use bulkhead_tests::{Agent, Enforced, Estate, NEVER, Process, SOON, Workload, any, at, wait_for};
use serde_json::Value;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

const PORT: u16 = Answer::PORT;

/// A name as it stands in a message.
fn labels(name: &str) -> Vec<u8> {
    let parts = name.split('.').map(str::as_bytes);
    let mut out: Vec<u8> = parts.flat_map(|p| [&[u8::try_from(p.len()).unwrap_or(0)], p].concat()).collect();
    out.push(0);
    out
}

/// A question for an address.
fn question(name: &str) -> Vec<u8> {
    let mut out = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    out.extend(labels(name));
    out.extend([0, 1, 0, 1]);
    out
}

/// The answer to it: an alias, and then so many times the address.
fn answer(question: &[u8], address: Ipv4Addr, times: u8) -> Vec<u8> {
    let mut out = question.to_vec();
    out[2] |= 0x80;
    out[7] = 1 + times;
    let alias = labels("edge.cdn.example");
    out.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, u8::try_from(alias.len()).unwrap_or(0)]);
    let at = u8::try_from(out.len()).unwrap_or(0);
    out.extend(alias);
    for _ in 0..times {
        out.extend([0xc0, at, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend(address.octets());
    }
    out
}

/// A name server that knows one address for every name.
fn name_server(on: &Workload, v6: bool, address: Ipv4Addr, times: u8) -> Process {
    let own = at(on, v6, PORT);
    let mut process = on
        .spawn(move |turn| {
            let socket = UdpSocket::bind(own)?;
            turn.ready()?;
            let mut buffer = [0; 512];
            loop {
                let (n, from) = socket.recv_from(&mut buffer)?;
                socket.send_to(&answer(&buffer[..n], address, times), from)?;
            }
        })
        .expect("a process");
    process.wait_ready(SOON).expect("it listens");
    process.go(&[]).expect("it goes on");
    process
}

/// Asks a server, by a socket that is connected or one that isn't.
fn ask(server: SocketAddr, name: &str, connected: bool) -> io::Result<()> {
    let socket = UdpSocket::bind(any(server.is_ipv6(), 0))?;
    socket.set_read_timeout(Some(SOON))?;
    if connected {
        socket.connect(server)?;
        socket.send(&question(name))?;
    } else {
        socket.send_to(&question(name), server)?;
    }
    socket.recv_from(&mut [0; 2048]).map(drop)
}

/// The addresses beside what a workload opened, in the graph.
fn addresses(agent: &Agent, from: &str) -> Vec<String> {
    let graph: Value = serde_json::from_slice(&agent.ask("graph", &["--as", "json"]).stdout).unwrap_or_default();
    let none = Vec::new();
    let nodes = graph["nodes"].as_array().unwrap_or(&none);
    let id = format!("spiffe://test/{from}");
    let index = nodes.iter().position(|n| n["id"] == id.as_str());
    let edges =
        graph["edges"].as_array().unwrap_or(&none).iter().filter(|e| e["source"].as_u64() == index.map(|i| i as u64));
    let all = edges.flat_map(|e| e["addresses"].as_array().cloned().unwrap_or_default());
    all.filter_map(|a| a.as_str().map(str::to_owned)).collect()
}

#[test]
fn who_asked_sees_the_name_and_nobody_else() {
    let estate = Estate::new(&["web", "batch", "resolver", "stranger"]);
    let mut agent = Agent::over(&estate, "posture: observe");
    let config = std::fs::read_to_string(agent.config()).expect("there");
    let stranger = estate.get("stranger");
    // Nobody knows who is at the stranger's addresses.
    let lines = config.lines().map(|l| match l.split_once(", addresses: ") {
        Some((line, _)) if line.contains("{name: stranger,") => format!("{line}}}\n"),
        _ => format!("{l}\n"),
    });
    std::fs::write(agent.config(), lines.collect::<String>()).expect("written");
    agent.start(&[]);
    let mut servers = Vec::new();
    for v6 in [false, true] {
        servers.push(name_server(estate.get("resolver"), v6, stranger.v4(), 2));
    }
    let mut service = stranger
        .spawn(move |turn| {
            let listener = TcpListener::bind(any(false, 443))?;
            turn.ready()?;
            loop {
                listener.accept()?;
            }
        })
        .expect("a process");
    service.wait_ready(SOON).expect("it listens");
    service.go(&[]).expect("it goes on");
    // Out of the blue, a stranger says what others are called.
    let lie = answer(&question("lies.example"), stranger.v4(), 1);
    let mut open = estate
        .get("batch")
        .spawn(|turn| {
            let socket = UdpSocket::bind(any(false, 9999))?;
            turn.ready()?;
            socket.set_read_timeout(Some(SOON))?;
            socket.recv_from(&mut [0; 2048]).map(drop)
        })
        .expect("a process");
    open.wait_ready(SOON).expect("it listens");
    open.go(&[]).expect("it goes on");
    let to = at(estate.get("batch"), false, 9999);
    let lie = &lie;
    done(stranger.spawn(move |_| UdpSocket::bind(any(false, PORT))?.send_to(lie, to).map(drop)).expect("a process"));
    open.finish(SOON).expect("it ends").unwrap_or_else(|e| panic!("{e:?}"));

    let resolver = [false, true].map(|v6| at(estate.get("resolver"), v6, PORT));
    let service = at(stranger, false, 443);
    for (connected, server, name) in [(false, resolver[0], "old.example"), (true, resolver[1], "API.Stripe.example")] {
        let asking = estate.get("web").spawn(move |turn| {
            turn.doing("ask");
            ask(server, name, connected)?;
            turn.doing("connect");
            TcpStream::connect(service).map(drop)
        });
        done(asking.expect("a process"));
        let shown = format!("{} ({})", name.to_lowercase(), stranger.v4());
        wait_for("the name stands beside the address", || addresses(&agent, "web").contains(&shown));
    }
    done(estate.get("batch").spawn(move |_| TcpStream::connect(service).map(drop)).expect("a process"));
    let plain = stranger.v4().to_string();
    wait_for("who didn't ask sees the address", || addresses(&agent, "batch") == [plain.clone()]);
    let text = |what: &str, more: &[&str]| String::from_utf8_lossy(&agent.ask(what, more).stdout).into_owned();
    let shown = format!("api.stripe.example ({plain})");
    for page in [text("graph", &[]), text("observe", &[])] {
        assert!(page.contains(&shown), "{page}");
        assert!(page.lines().all(|l| l.chars().count() <= 100), "{page}");
    }
    // The history has it, and a new agent finds it there.
    agent.kill();
    agent.start(&[]);
    assert!(addresses(&agent, "web").contains(&shown));
    let (status, _) = agent.status();
    assert_eq!((&status["lost_answers"], &status["without_address"]), (&0.into(), &0.into()));
}

/// What the programs tell until there is silence.
fn told(runtime: &tokio::runtime::Runtime, answers: &mut Answers) -> Vec<Answer> {
    let mut all = Vec::new();
    runtime.block_on(async {
        while let Ok(batch) = tokio::time::timeout(NEVER, answers.next()).await {
            all.extend(batch.expect("the ring"));
        }
    });
    all
}

#[test]
fn answers_are_told_within_bounds() {
    let estate = Estate::new(&["web", "resolver"]);
    let mut enforced = Enforced::over(&estate, Posture::Observe, "");
    let address = Ipv4Addr::new(203, 0, 113, 7);
    let _server = name_server(estate.get("resolver"), false, address, 60);
    let server = at(estate.get("resolver"), false, PORT);
    let ask = |times: u32| {
        let mut asking = estate
            .get("web")
            .spawn(move |_| {
                for n in 0..times {
                    ask(server, "api.stripe.example", n % 2 == 0)?;
                }
                Ok(())
            })
            .expect("a process");
        asking.finish(SOON).expect("it ends").unwrap_or_else(|e| panic!("{e:?}"));
    };
    let web = enforced.peer("web").0;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut answers = enforced.datapath().take_answers().expect("the first time");
    // Off until somebody wants it.
    ask(4);
    enforced.datapath().set_tell_answers(true);
    ask(4);
    let all = told(&runtime, &mut answers);
    assert_eq!(all.len(), 4);
    for a in &all {
        assert_eq!((a.peer, usize::from(a.length), a.cut), (web, Answer::MOST, 1));
        let read = dns::read(&a.payload).expect("what was whole of it");
        assert_eq!(read.name, "api.stripe.example");
        assert!(
            read.addresses.len() > 20
                && read.addresses.iter().all(|(a, ttl)| *a == IpAddr::from(address) && *ttl == 60)
        );
    }
    // A flood is cut off and counted, and takes no place from anything else.
    std::thread::sleep(Duration::from_millis(1100));
    let times = 2000;
    ask(times);
    let all = told(&runtime, &mut answers);
    let totals = enforced.datapath().totals().expect("the totals");
    eprintln!("{} of {times} told", all.len());
    assert!(all.len() >= Answer::PER_SECOND as usize && all.len() < 1000, "{}", all.len());
    assert_eq!(all.len() as u64 + totals.lost_answers(), u64::from(times));
    assert_eq!(totals.lost_events(), 0);
}

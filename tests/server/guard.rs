//! Who is answered, and how much is taken from them.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{Server, read_answer};

#[test]
fn only_exact_hosts_and_origins_are_answered_for_every_method() {
    let server =
        Server::start("qwen3", &["--allowed-origin", "http://notes.example:3000", "--allowed-host", "box.lan"]);
    let port = server.port;
    let own = [
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        format!("LOCALHOST:{port}"),
        format!("[::1]:{port}"),
        "box.lan".into(),
    ];
    let foreign = [
        "127.0.0.1".into(),
        "localhost".into(),
        format!("127.0.0.1:{}", port ^ 1),
        format!("127.0.0.1:{port}0"),
        format!("127.0.0.1.:{port}"),
        format!("127.0.0.2:{port}"),
        format!("0.0.0.0:{port}"),
        format!("[::]:{port}"),
        format!("evil.example:{port}"),
        format!("localhost.evil.example:{port}"),
        format!("evil.localhost:{port}"),
        format!("x@127.0.0.1:{port}"),
        format!("127.0.0.1:{port},localhost:{port}"),
        format!("127.0.0.1:{port}#"),
        format!("127.0.0.1:{port}/"),
        "box.lan:80".into(),
        "a.box.lan".into(),
        "box.lan.".into(),
        format!("127.1:{port}"),
        format!("2130706433:{port}"),
    ];
    let hosts = own.iter().map(|host| (host.as_str(), true)).chain(foreign.iter().map(|host| (host.as_str(), false)));
    let origins = [
        (None, true),
        (Some(format!("http://127.0.0.1:{port}")), true),
        (Some(format!("http://localhost:{port}")), true),
        (Some("http://notes.example:3000".into()), true),
        (Some("http://notes.example".into()), false),
        (Some("https://notes.example:3000".into()), false),
        (Some("http://notes.example:3000.evil.example".into()), false),
        (Some("http://evil.example".into()), false),
        (Some("null".into()), false),
        (Some(String::new()), false),
        (Some(format!("http://127.0.0.1:{}", port ^ 1)), false),
        (Some("file://".into()), false),
    ];
    let mut decisions = 0;
    for (host, known) in hosts {
        for (origin, allowed) in &origins {
            for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"] {
                let origin_line = origin.as_ref().map_or(String::new(), |origin| format!("Origin: {origin}\r\n"));
                let request =
                    format!("{method} /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{origin_line}\r\n");
                let answer = server.raw(request.as_bytes());
                let refused = matches!(answer.status, 400 | 403 | 421);
                assert_eq!(!refused, known && *allowed, "{method} {host} {origin:?}: {answer:?}");
                let readable = answer.head.contains("access-control-allow-origin");
                assert_eq!(readable, known && origin.as_deref() == Some("http://notes.example:3000"), "{answer:?}");
                decisions += 1;
            }
        }
    }
    assert_eq!(decisions, 25 * 12 * 6);
    // No name at all, two names, and a name in the request line.
    for request in [
        "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n".into(),
        format!(
            "GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
        ),
        format!("GET http://evil.example/health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"),
        "GET /health HTTP/1.0\r\n\r\n".into(),
    ] {
        assert!(matches!(server.raw(request.as_bytes()).status, 400 | 421), "{request}");
    }
}

#[test]
fn a_key_is_made_asked_for_and_kept_from_others() {
    let state = tempfile::tempdir().unwrap();
    let model = crate::tiny_model::tiny_model("qwen3");
    let path = state.path().to_str().unwrap();
    let mut server = Server::spawn(model.path(), &["--state-dir", path]);
    server.wait_for("ready");
    let key = std::fs::read_to_string(state.path().join("api-key")).unwrap().trim().to_owned();
    let with = |header: &str| server.raw(format!("{}\r\n", server.head("GET", "/v1/models", header)).as_bytes());
    assert_eq!(with(&format!("Authorization: Bearer {key}\r\n")).status, 200);
    assert_eq!(with(&format!("X-Api-Key: {key}\r\n")).status, 200);
    for header in [String::new(), "Authorization: Bearer x\r\n".into(), format!("Authorization: {key}\r\n")] {
        let answer = with(&header);
        assert_eq!(answer.status, 401);
        let error = &answer.json()["error"];
        assert_eq!((&error["type"], &error["code"]), (&json!("authentication_error"), &json!("invalid_api_key")));
        assert!(answer.head.contains("www-authenticate"));
    }
    // What there is not is not told either.
    assert_eq!(server.get("/nothing").status, 401);
    let health = server.get("/health");
    assert_eq!((health.status, health.body.as_str()), (200, r#"{"status":"ok"}"#));
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn an_address_that_others_reach_needs_a_flag_and_a_key() {
    let model = crate::tiny_model::tiny_model("qwen3");
    let refused = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_nightmonk"))
            .args(["serve", "--port", "0", "-m"])
            .arg(model.path())
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, error) = refused(&["--host", "0.0.0.0", "--api-key", "k"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("--allow-remote"), "{error}");
    let (code, _) = refused(&["--host", "0.0.0.0", "--allow-remote", "--no-api-key"]);
    assert_eq!(code, Some(2));
}

#[test]
fn too_much_of_anything_is_refused() {
    let server = Server::start("qwen3", &["--body-limit", "2000"]);
    let post = |body: &str| server.post_text("/v1/completions", body);
    assert_eq!(post(&format!("{{\"prompt\": \"{}\"}}", "x".repeat(3000))).status, 413);
    let deep = post(&format!("{{\"prompt\": {}1{}}}", "[".repeat(500), "]".repeat(500)));
    assert_eq!(deep.status, 400);
    assert!(deep.body.contains("64 levels"), "{deep:?}");
    for body in ["", "{", "[]", "null", "\"x\"", "{\"prompt\":\"x\"}}", "{\"prompt\": \"\\ud800\"}", "\u{0}"] {
        assert_eq!(post(body).status, 400, "{body}");
    }
    let plain = format!(
        "{}Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{{}}",
        server.head("POST", "/v1/completions", "")
    );
    assert_eq!(server.raw(plain.as_bytes()).status, 415);
    let many: String = (0..80).map(|index| format!("X-{index}: y\r\n")).collect();
    assert_eq!(server.raw(format!("{}\r\n", server.head("GET", "/health", &many)).as_bytes()).status, 431);
    let long = format!("X: {}\r\n", "y".repeat(20_000));
    assert_eq!(server.raw(format!("{}\r\n", server.head("GET", "/health", &long)).as_bytes()).status, 431);
    assert_eq!(server.get("/v2/nothing").status, 404);
    assert_eq!(server.get("/v1/chat/completions").status, 405);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn slow_connections_are_closed_within_seven_seconds() {
    let server = Server::start("qwen3", &[]);
    let begin = |text: String| {
        let mut stream = server.connect();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let keep_alive = format!("GET /health HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\r\n", server.port);
    let body = "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"prompt\"";
    let mut slow = Vec::new();
    for _ in 0..10 {
        slow.push(begin(String::new()));
        slow.push(begin("GET /health HTT".into()));
        slow.push(begin(keep_alive.clone()));
        slow.push(begin(server.head("POST", "/v1/completions", body)));
    }
    let start = Instant::now();
    let mut drips: Vec<_> = (0..10).map(|_| begin("GET /".into())).collect();
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(server.get("/health").status, 200);
        // Those that are closed already cannot be written to.
        drips.iter_mut().for_each(|stream| _ = stream.write_all(b"x"));
    }
    slow.append(&mut drips);
    for mut stream in slow {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut rest = Vec::new();
        // A reset closes, too; a time-out would not.
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
    assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
}

#[test]
fn a_socket_in_the_file_system_serves_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("monk.sock");
    let server = Server::start("qwen3", &["--unix-socket", path.to_str().unwrap()]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.terminate(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_request_that_follows_another_on_its_connection_is_answered() {
    let server = Server::start("qwen3", &[]);
    let mut stream = server.connect();
    let first = format!("GET /health HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\r\n", server.port);
    stream.write_all(first.as_bytes()).unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    stream.write_all(format!("{}\r\n", server.head("GET", "/v1/models", "")).as_bytes()).unwrap();
    let both = read_answer(stream);
    assert!(both.body.contains("HTTP/1.1 200 OK"), "{both:?}");
}

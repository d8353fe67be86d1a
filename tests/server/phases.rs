//! Requests that wait, run, are given up, and a server that ends.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{Server, read_answer};

#[test]
fn a_full_queue_is_told_at_once_and_a_client_that_goes_makes_room() {
    let server = Server::start("qwen3", &["--parallel", "1", "--queue-size", "1", "-c", "8192"]);
    let long = json!({"prompt": "a", "max_tokens": 8000, "ignore_eos": false, "stream": true}).to_string();
    let request = server.post_request("/v1/completions", &long);
    let mut clients: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(request.as_bytes()).unwrap();
            // Headers come at once, also of the one that waits.
            let mut head = [0; 12];
            stream.read_exact(&mut head).unwrap();
            assert_eq!(&head, b"HTTP/1.1 200");
            stream
        })
        .collect();
    let body = json!({"prompt": "a", "max_tokens": 1});
    let full = server.post("/v1/completions", &body);
    assert_eq!(full.status, 429);
    assert!(full.head.contains("retry-after"), "{full:?}");
    assert_eq!(full.json()["error"]["code"], "queue_full");

    // The one that waits goes first, then the one that runs.
    while let Some(client) = clients.pop() {
        drop(client);
        let start = Instant::now();
        while server.post("/v1/completions", &body).status == 429 {
            assert!(start.elapsed() < Duration::from_secs(10), "its place is not free");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_server_that_is_asked_to_end_finishes_what_it_has_begun() {
    let server = Server::start("qwen3", &[]);
    let request = server.post_request("/v1/completions", &json!({"prompt": "a", "max_tokens": 200}).to_string());
    let mut stream = server.connect();
    stream.write_all(request.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(server.terminate(), Some(0));
    let answer = read_answer(stream);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.json()["usage"]["completion_tokens"].as_u64().unwrap() > 0);
}

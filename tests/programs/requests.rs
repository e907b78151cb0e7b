//! The parts of a client that are the same whatever encrypts for it: by reqwest, on tokio's threads.

use reqwest::{Client, Url};

/// Runs what its arguments ask for: see the programs that this is a part of.
pub fn run(words: &[&str]) {
    let tokio = tokio::runtime::Runtime::new().unwrap();
    match *words {
        ["requests", port, bytes] => tokio.block_on(requests(port, bytes.parse().unwrap())),
        [how @ ("get" | "post"), connections, requests, ref urls @ ..] => {
            let urls: Vec<Url> = urls.iter().map(|url| url.parse().unwrap()).collect();
            let requests = requests.parse().unwrap();
            tokio.block_on(async {
                let clients = (0..connections.parse().unwrap()).map(|number: usize| {
                    let url = urls[number % urls.len()].clone();
                    tokio::spawn(nonces(how == "post", number, requests, url))
                });
                for client in clients.collect::<Vec<_>>() {
                    client.await.unwrap();
                }
            });
        }
        _ => panic!("not understood: {words:?}"),
    }
}

fn client() -> Client {
    let client = Client::builder().danger_accept_invalid_certs(true);
    client.build().unwrap()
}

pub fn noise(size: usize) -> Vec<u8> {
    let byte = |at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
    (0..size).map(byte).collect()
}

async fn requests(port: &str, bytes: usize) {
    let client = client();
    let body = noise(bytes);
    for _ in 0..3 {
        let url = format!("https://127.0.0.1:{port}/echo");
        let echo = client.post(url).body(body.clone()).send().await.unwrap();
        assert!(echo.bytes().await.unwrap() == body);
        let url = format!("https://127.0.0.1:{port}/chunked/150001");
        let mut chunked = client.get(url).send().await.unwrap();
        let mut size = 0;
        while let Some(chunk) = chunked.chunk().await.unwrap() {
            size += chunk.len();
        }
        assert_eq!(size, 150_001);
    }
}

async fn nonces(is_post: bool, connection: usize, requests: usize, url: Url) {
    let client = client();
    let workers = if is_post { 8 } else { 1 };
    // The others share its connection.
    ask(&client, is_post, connection, 0, &url).await;
    let workers = (0..workers).map(|worker| {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move {
            for request in (1 + worker..requests).step_by(workers) {
                ask(&client, is_post, connection, request, &url).await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
}

async fn ask(client: &Client, is_post: bool, connection: usize, request: usize, url: &Url) {
    let path = format!("/nonce-{connection:04}-{request:04}");
    let url = url.join(&path).unwrap();
    let pad = "p".repeat(1 + (connection * 7919 + request * 104_729) % 1500);
    let request = match is_post {
        true => client.post(url).body(path.clone() + &pad),
        false => client.get(url).header("pad", pad),
    };
    let answer = request.send().await.unwrap().text().await.unwrap();
    assert!(answer.contains(&path), "{answer}");
}

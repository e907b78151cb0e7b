mod bench;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["bench", rest @ ..] => bench::main(rest),
        _ => anyhow::bail!("usage: cargo xtask bench capture"),
    }
}

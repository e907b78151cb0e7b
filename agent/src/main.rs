fn main() {
    for (n, r) in vortex_agent::probe::check_all().unwrap() {
        println!("{n}: {r:?}");
    }
}

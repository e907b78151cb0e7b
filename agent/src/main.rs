fn main() {
    println!("vortex-agent");
}

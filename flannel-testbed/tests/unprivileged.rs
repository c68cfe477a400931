//! A testbed for an ordinary user. Has a `main` of its own, because a user namespace is entered before there are threads.

use flannel_testbed::{Testbed, capable, enter_user_namespace};

fn main() {
    println!("\nrunning 1 test");
    let name = "test an_ordinary_user_builds_a_testbed";
    let asked = |arg: &str| std::env::args().any(|given| given == arg);
    if asked("--list") {
        return;
    }
    if !asked("--ignored") && !asked("--include-ignored") {
        println!("{name} ... ignored, needs user namespaces: run ./ci.sh netns");
        println!("\ntest result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n");
        return;
    }
    an_ordinary_user_builds_a_testbed();
    println!("{name} ... ok");
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n");
}

fn an_ordinary_user_builds_a_testbed() {
    enter_user_namespace().unwrap();
    assert!(capable());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let testbed = Testbed::new(2).await.unwrap();
        testbed.host(0).ping(testbed.host(1).ip()).await.unwrap();
    });
}

//! Interprets a script that computes with numbers and makes maps, arrays and strings: deep stacks, and a fifth of the
//! allocations a millisecond of `json`.

use std::time::Duration;

use rhai::Engine;
use serde_json::Value;

use crate::timing::measure;
use crate::turns::Turns;

/// Counts words, sorts them, builds a small tree and walks it, counts primes.
const SCRIPT: &str = r##"
fn tree(depth) {
    if depth == 0 { return #{ weight: 1, name: "leaf" }; }
    let children = [];
    for i in 0..3 { children.push(tree(depth - 1)); }
    #{ weight: depth, name: `node ${depth}`, children: children }
}
fn weigh(node) {
    let sum = node.weight + node.name.len();
    if "children" in node { for child in node.children { sum += weigh(child); } }
    sum
}
let text = "the quick brown fox jumps over the lazy dog while the other dog sleeps near the old fox";
let counts = #{};
for round in 0..4 {
    for word in text.split(" ") {
        let key = `${word}-${round}`;
        counts[key] = if key in counts { counts[key] + 1 } else { 1 };
    }
}
let keys = counts.keys();
keys.sort();
let joined = "";
for key in keys { joined += key + "=" + counts[key] + ";"; }
let primes = 0;
for number in 2..1000 {
    let divisor = 2;
    while divisor * divisor <= number && number % divisor != 0 { divisor += 1; }
    if divisor * divisor > number { primes += 1; }
}
joined.len() + weigh(tree(4)) + primes
"##;

pub fn run(time: Duration, turns: &Turns) -> Value {
    let engine = Engine::new();
    let script = engine.compile(SCRIPT).expect("the script compiles");
    measure(time, turns, || engine.eval_ast::<i64>(&script).expect("the script runs") as u64).report(1)
}

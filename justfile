# The common words. `just` alone lists them.

_default:
    @just --list

# what a change must pass beside `just test`: formatting, lints, documentation, dependencies
check:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
    cargo deny check bans licenses sources

# all that a change must pass before it lands; installs what it needs on Debian
ci:
    bash .ci/run

# every test that needs no other program
test:
    cargo test

# the suites with real servers as well; .ci/run installs what they need
test-real:
    NORTHGATE_REAL=1 cargo test --test real -- --nocapture --test-threads=1

# how long the hot path takes
bench *filter:
    cargo bench {{ filter }}

# a minute of hostile input for each parser (needs cargo-fuzz; the stable compiler is told that it may)
fuzz seconds="60":
    for target in $(cargo fuzz list); do RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none "$target" -- -max_total_time={{ seconds }} || exit 1; done

# the whole system on this machine
demo:
    cargo run --release -- dev

# make verify never writes into the tree; make fix does.
.PHONY: verify fix test run

verify:
	tests/run format lint unit

fix:
	cargo fmt --all
	gofmt -w tests
	cargo clippy --workspace --all-targets --fix --allow-dirty

test:
	tests/run

run:
	cargo run --package covey -- local examples/quickstart.yaml

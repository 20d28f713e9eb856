# Everything a developer does, one target each. Each installs what it needs (Debian packages, as root) and says so.
.DEFAULT_GOAL := help
.PHONY: help demo build images generate test test-kube conformance-kube lint fuzz mutants bench vm sweep clean

export CGO_ENABLED := 0
# Without gRPC's tracing pages nothing uses html/template, which makes the linker keep every method of every type: it saves
# a fifth of the agent.
export GOFLAGS := $(strip $(GOFLAGS) -tags=grpcnotrace)
BINARIES := tendril tendril-agent tendril-cni tendril-operator
VERSION ?= dev
KERNELS := $(CURDIR)/build/kernels

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## a cluster of three nodes on this machine tells the story in two minutes; KEEP=1 leaves it running
	@test/install.sh lab
	@bin/tendril lab demo $(if $(KEEP),--keep)

build: ## build the binaries into bin/
	@mkdir -p bin
	@for binary in $(BINARIES); do \
		echo "build bin/$$binary"; \
		go build -trimpath -ldflags '-s -w -X tendril.io/tendril/internal/node.Version=$(VERSION)' -o bin/$$binary ./cmd/$$binary || exit 1; \
	done

images: build ## write the container images into build/images, archives in the OCI layout; VERSION=dev is their tag
	@mkdir -p build/images
	@go run ./deploy/image tendril.io/agent:$(VERSION) bin/tendril-agent bin/tendril-cni bin/tendril > build/images/agent.tar
	@go run ./deploy/image tendril.io/operator:$(VERSION) bin/tendril-operator > build/images/operator.tar
	@ls -s --block-size=M build/images

generate: ## compile the BPF programs and everything else that is generated
	@test/install.sh generate
	@go generate ./bpf ./api

test: ## run every test; leaves nothing behind
	@test/run.sh

test-kube: images ## operator, agents and CNI plugin in a real Kubernetes cluster of two nodes, which is built the first time: ten minutes; MODE=vxlan, DUAL=1, CONTAINERD=2, or CELLS=1 for all four
	@test/install.sh bench
	@test/kube/build.sh
	@$(if $(CELLS),test/kube/cells.sh,MODE=$(MODE) DUAL=$(DUAL) CONTAINERD=$(CONTAINERD) test/kube/run.sh)

conformance-kube: images ## the network specs of the Kubernetes e2e suite in that cluster; FOCUS=REGEXP, MODE, DUAL
	@test/kube/build.sh conformance
	@MODE=$(MODE) DUAL=$(DUAL) test/kube/run.sh conformance

lint: ## check the budgets and habits that a program can check
	@go vet ./...
	@go test -count=1 ./test/lint
	@test/golangci.sh

fuzz: ## fuzz every fuzz target, TIME=10s each; ask the kernel about PAIRS=1000000 random policies and packets
	@test/fuzz.sh $(or $(TIME),10s) $(or $(PAIRS),1000000)

mutants: ## put faults into a copy of the tree, see which the tests notice, write docs/mutants.md
	@test/install.sh generate
	@go run ./test/mutants -out docs/mutants.md

bench: images ## measure against bare veth and kube-proxy, and pods of Kubernetes where make test-kube built it, print a table, write bench/results.json
	@test/install.sh lab bench
	@go run ./test/bench -bin bin -out bench/results.json

vm: ## run a package's tests on another kernel: make vm KERNEL=6.1 PKG=./internal/datapath
	@test/install.sh kernels
	@test/kernels/fetch.sh $(KERNELS)
	@go run ./test/kernels/run -kernels $(KERNELS) -kernel $(or $(KERNEL),6.1) $(or $(PKG),./test/kernels)

sweep: ## remove what a killed test or lab left on this machine
	@test/sweep.sh remove

clean: sweep ## sweep, and remove what was built
	@rm -rf bin build

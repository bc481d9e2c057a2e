# Needs Go and make. `make interop` also needs Node.js 20 and npm, `make race` a C compiler, `make check` git.

SHELL       := /bin/sh
GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# A number of inputs, not a time: before Go 1.27 a run that ends by the clock may fail for that alone (go.dev/issue/75804).
FUZZTIME    ?= 20000x
BENCH       ?= .

export CGO_ENABLED = 0

SRC := $(shell $(GO) env GOROOT)/src
# Packages of the Go library that gopher-4m was trained on, and packages that it never saw.
SEEN   := sort fmt strconv os net/http encoding/json go/types
UNSEEN := bufio archive/zip log/slog net/url text/template
calib   = out/calib-$(subst /,-,$(1)).txt

# Packages with assembly for arm64, and those whose products it serves.
NEON := ./kernels ./kernels/attention ./kernels/gemm ./kernels/vector

# Packages that start goroutines, or write from several.
CONCURRENT := ./awq ./calib ./cmd/llmq ./engine/... ./eval ./formats/gguf ./gptq ./hub ./internal/ui ./kernels/... ./linalg ./pipeline ./quant ./store

# What releases are built for, and with, whatever the environment says.
PLATFORMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
PINNED    := CGO_ENABLED=0 GOFLAGS= GOEXPERIMENT= GOAMD64=v1 GOARM64=v8.0

empty  :=
# Tests of what does not depend on how products are made, minutes without assembly.
ANYHOW := $(subst $(empty) $(empty),|,TestAssignErrors TestCostOfRecipes TestDryRun TestEvalWork TestFallbackBudget TestHostile TestInputChanges TestInterrupt \
	TestLlamaCpp TestLowDiskWork TestNothingLeft TestPassing TestProfileWork TestResume TestResumeDamaged TestResumeOften TestSignals TestUnits TestUnitsFault TestUnitsMixedShards TestUnitsResume TestWork TestWorkers)

# Tests that quantize again and again, in pipeline and cmd/llmq, and are in no other package: more than a minute of two cores.
WIDELY := $(subst $(empty) $(empty),|,TestAssignErrors TestAuto TestBenchModel TestBiasCorrection TestCostOfRecipes TestEveryType TestFolding \
	TestInputChanges TestLimit TestLimitExitCode TestLimitNotMet TestLowDiskKilled TestNeedsMemory TestPassingDamaged TestPassingUnused TestPlanted \
	TestProfileWork TestQuantizeOptions TestRecipe TestResumeDamaged TestUnitsMixedShards TestUnitsResume TestUnitsResumeBatches)

# Tests that compare with plain references, minutes of one goroutine under the race detector. Others run what they compare.
SLOWLY := $(subst $(empty) $(empty),|,TestAssignErrors TestAuthors TestBetter TestCholeskyNotPositive TestLlamaCpp \
	TestPaddedVocabulary TestReference TestSweep TestTask)|$(WIDELY)

.PHONY: help build demo test check wide purego cross neon race fuzz interop namespaces speed speed-gptq bench generate release clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Without symbols and debug information the file is a third smaller; tracebacks keep names and lines.
build: ## compile bin/llmq
	$(GO) build -ldflags '-s -w' -o bin/llmq ./cmd/llmq

demo: build ## quantize the built-in model with GPTQ to 4 bits and evaluate it before and after
	@mkdir -p out
	@$(foreach p,$(SEEN),cat $(SRC)/$(p)/*.go > $(call calib,$(p));)
	@cat $(UNSEEN:%=$(SRC)/%/*.go) > out/eval.txt
	bin/llmq convert testdata/gopher-4m -o out/gopher-4m-f16.gguf --force
	bin/llmq quantize testdata/gopher-4m -o out/gopher-4m-q4_k.gguf --method gptq --bits 4 \
		$(foreach p,$(SEEN),--calib $(call calib,$(p))) --seq-len 256 --force
	bin/llmq eval out/gopher-4m-q4_k.gguf --text out/eval.txt --context 256 --chunks 100 \
		--base out/gopher-4m-f16.gguf
	@ls -l out/*.gguf

# The compiler and tests of small models spend a tenth to a fifth of their time collecting garbage that there is memory for.
test: ## run the tests, but those of make wide
	GOGC=400 $(GO) test -skip '^($(WIDELY))$$' ./...

check: ## formatting, vet, staticcheck, dependency directions, generated files
	@unformatted=$$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 gofmt -l); \
		if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags purego ./...
	$(GO) vet -tags interop ./internal/interop
	cd kernels/_asm && $(GO) vet ./... && $(GO) test ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) test -count=1 ./internal/layering
	$(MAKE) generate
	git diff --exit-code -- kernels

generate: ## write the assembly from its generator
	$(GO) generate ./kernels

wide: ## run the tests that quantize the built-in model again and again
	WIDE=1 $(GO) test -run '^(TestPlantedGopher|TestAssignGopher|TestPassing|$(WIDELY))$$' ./pipeline ./cmd/llmq

purego: ## build and test without assembly, but for what takes minutes then
	$(GO) build -tags purego ./...
	$(GO) test -tags purego -short -skip '^($(ANYHOW))$$' ./...

cross: ## compile, tests included, for the systems that CI does not run on
	GOOS=darwin GOARCH=arm64 $(GO) vet ./...
	GOOS=windows GOARCH=amd64 $(GO) vet ./...
	GOOS=linux GOARCH=arm64 $(GO) vet ./...

neon: ## run the matrix products' tests under qemu-user
	GOOS=linux GOARCH=arm64 $(GO) test -exec qemu-aarch64 -run 'Gemm|MatMul|Syrk|Dot|Attention|Back|Tier' $(NEON)
	GOOS=linux GOARCH=arm64 $(GO) test -exec qemu-aarch64 -run 'Dots|NotFinite|FMA' ./kernels/q8

race: ## run the tests of the packages that start goroutines under the race detector
	CGO_ENABLED=1 $(GO) test -race -short -timeout 20m -skip '^($(SLOWLY))$$' $(CONCURRENT)

fuzz: ## fuzz every parser with FUZZTIME inputs
	@$(GO) test -list '^Fuzz' ./... | \
		awk '/^Fuzz/ {f[n++] = $$1} /^ok/ {for (i = 0; i < n; i++) print $$2, f[i]; n = 0}' | \
		while read -r pkg name; do \
			echo "fuzz $$pkg $$name"; \
			$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$pkg || exit 1; \
		done

interop: ## compare block types, methods and families with llama.cpp, from node-llama-cpp's prebuilt binaries (INTEROP=all: every method on every family)
	cd internal/interop && npm install --no-save --ignore-scripts --omit=optional --no-audit --no-fund
	# llama.cpp's AMX code aborts on LFM2 and on quantized MLA (github.com/ggml-org/llama.cpp/issues/19184): go without it.
	rm -f internal/interop/node_modules/@node-llama-cpp/*/bins/*/libggml-cpu-sapphirerapids.*
	$(GO) test -tags interop -count=1 -timeout 20m -v ./internal/interop

namespaces: build ## quantize with workers in network namespaces, and have them, the coordinator and the network fail
	timeout 10m engine/cluster/namespaces.sh bin/llmq

speed: build ## time llmq eval on MODELS (GGUF files) beside PEERS (paths of llama-perplexity or llama-bench)
	@mkdir -p out
	@cat $(UNSEEN:%=$(SRC)/%/*.go) > out/eval.txt
	internal/interop/speed.sh bin/llmq out/eval.txt "$(MODELS)" $(PEERS)

speed-gptq: ## time GPTQ beside its authors' code in AUTHORS, a folder with their gptq.py and quant.py (needs PyTorch)
	internal/interop/gptq_speed.sh "$(AUTHORS)"

bench: ## run the Go benchmarks of BENCH (a regular expression), ready for benchstat
	$(GO) test -run '^$$' -bench '$(BENCH)' -count 6 ./...

# The same commit and Go version give the same bytes, wherever they are built and whatever the environment says.
release: ## build dist: programs for every system, manual pages, completions, checksums, an SBOM; of a commit as it is
	@test -z "$$(git status --porcelain)" || { echo "make release: there are changes that are not committed"; exit 1; }
	rm -rf dist
	@mkdir -p dist/man dist/completion
	@version=$$(git describe --tags --always); for platform in $(PLATFORMS); do \
		os=$${platform%/*} arch=$${platform#*/}; \
		case $$os in windows) exe=.exe;; *) exe=;; esac; \
		echo "build $$platform"; \
		GOOS=$$os GOARCH=$$arch $(PINNED) $(GO) build -trimpath -buildvcs=true -ldflags '-s -w' \
			-o dist/llmq-$$version-$$os-$$arch$$exe ./cmd/llmq || exit 1; \
	done
	@$(PINNED) $(GO) build -trimpath -buildvcs=true -o dist/llmq ./cmd/llmq
	dist/llmq man dist/man
	@for shell in bash zsh fish; do dist/llmq completion $$shell > dist/completion/llmq.$$shell; done
	@rm dist/llmq
	$(GO) run ./internal/sbom dist/llmq-* > dist/llmq.spdx.json
	cd dist && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | sed 's,^\./,,' | xargs sha256sum > SHA256SUMS

clean: ## remove what make wrote
	rm -rf bin out dist internal/interop/node_modules

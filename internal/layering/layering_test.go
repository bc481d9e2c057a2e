// Package layering holds the directions in which the project's packages may depend on each other.
package layering

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/llmq/llmq/"

// allowed lists, for each package, the packages of this module that its code may import; tests may import any.
// "kernels/..." is kernels and its rooms, the packages below it that are not internal. A new package needs a line here.
var allowed = map[string]string{
	"tensor":                      "internal/hugepages",
	"kernels":                     "tensor",
	"kernels/internal/words":      "internal/hugepages",
	"kernels/internal/pack":       "tensor",
	"kernels/internal/tile":       "tensor kernels kernels/internal/words kernels/internal/pack kernels/unpack",
	"kernels/internal/kerneltest": "tensor kernels",
	"kernels/internal/blocktest":  "kernels formats/ggml",
	"kernels/vector":              "kernels",
	"kernels/elementwise":         "tensor kernels kernels/vector",
	"kernels/unpack":              "kernels kernels/internal/words kernels/internal/pack",
	"kernels/encode":              "tensor kernels",
	"kernels/gemm": "tensor kernels kernels/vector kernels/elementwise kernels/unpack " +
		"kernels/internal/words kernels/internal/pack kernels/internal/tile",
	"kernels/attention": "tensor kernels kernels/vector kernels/elementwise kernels/internal/words " +
		"kernels/internal/pack kernels/internal/tile",
	"kernels/scan":     "tensor kernels kernels/vector kernels/elementwise kernels/gemm",
	"kernels/deltanet": "tensor kernels kernels/scan kernels/vector kernels/elementwise kernels/gemm kernels/internal/words",
	"kernels/q8":       "tensor kernels kernels/internal/words kernels/internal/pack kernels/unpack",
	"kernels/i8":       "tensor kernels kernels/internal/pack kernels/internal/words",
	"kernels/search":   "kernels",
	"kernels/codebook": "kernels",
	"kernels/columns":  "internal/hugepages kernels kernels/internal/words kernels/internal/pack",
	"kernels/peak":     "kernels",

	"linalg":    "tensor kernels/...",
	"quant":     "tensor kernels/...",
	"quant/fit": "tensor kernels/... quant",
	"gptq":      "internal/hugepages tensor kernels/... linalg quant",

	"awq":         "tensor kernels/... quant",
	"smoothquant": "kernels/... quant",
	"int8outlier": "tensor kernels/... quant",

	"formats/safetensors": "internal/atomicfile internal/mmap internal/sniff",
	"formats/checkpoint":  "tensor kernels formats/ggml formats/safetensors internal/mmap internal/sniff internal/text",
	"formats/ggml":        "tensor kernels/... quant quant/fit",
	"formats/gguf":        "formats/ggml internal/atomicfile internal/mmap internal/sniff",
	"formats/hf/object":   "internal/sniff",
	"formats/packed":      "tensor kernels quant quant/fit formats/ggml",
	"formats/hf": "tensor formats/ggml formats/gguf formats/packed formats/safetensors formats/hf/object formats/checkpoint " +
		"internal/atomicfile internal/mmap internal/sniff internal/text tokenizer arch model",

	"tokenizer":      "",
	"model":          "internal/hugepages tensor kernels/... quant formats/ggml",
	"arch":           "tensor kernels/... formats/ggml formats/gguf formats/hf/object model",
	"calib":          "tensor kernels/... tokenizer formats/gguf internal/jinja internal/text",
	"eval":           "tokenizer internal/text tensor kernels/... quant int8outlier formats/ggml model internal/mmap internal/states store engine",
	"profile":        "tensor kernels/... quant smoothquant int8outlier formats/ggml model arch calib eval internal/states store",
	"compare":        "kernels/... formats/ggml formats/gguf model",
	"imatrix":        "tensor kernels/... formats/ggml formats/gguf model calib internal/states",
	"engine":         "store",
	"engine/cluster": "engine store",
	"pipeline": "tensor kernels/... linalg quant gptq awq smoothquant int8outlier formats/ggml formats/gguf model arch calib eval " +
		"internal/atomicfile internal/mmap internal/states internal/knapsack store engine imatrix",

	"hub":    "internal/atomicfile internal/mmap",
	"store":  "internal/atomicfile",
	"report": "formats/ggml formats/gguf formats/packed internal/text model eval profile pipeline quant",

	"cmd/llmq": "tensor quant gptq smoothquant formats/ggml formats/gguf formats/hf formats/packed formats/safetensors tokenizer model arch " +
		"calib eval hub profile pipeline report store engine engine/cluster imatrix compare kernels/... internal/atomicfile internal/text internal/bench internal/mmap internal/ui",

	"internal/atomicfile": "",
	"internal/hubtest":    "",
	"internal/hugepages":  "",
	"internal/interop":    "",
	"internal/jinja":      "",
	"internal/bench":      "tensor kernels/... gptq formats/ggml model",
	"internal/knapsack":   "",
	"internal/layering":   "",
	"internal/mmap":       "",
	"internal/sbom":       "",
	"internal/s3test":     "",
	"internal/shared":     "",
	"internal/sniff":      "",
	"internal/states":     "tensor kernels kernels/encode",
	"internal/synth":      "tensor kernels/... formats/safetensors formats/ggml formats/hf internal/testmodel pipeline",
	"internal/testmodel":  "tensor formats/ggml formats/gguf",
	"internal/text":       "",
	"internal/ui":         "",
}

// packages are those that a line of the table names.
func packages(line string) []string {
	var names []string
	for _, name := range strings.Fields(line) {
		if root, below := strings.CutSuffix(name, "/..."); below {
			for pkg := range allowed {
				if (pkg == root || strings.HasPrefix(pkg, root+"/")) && !strings.HasPrefix(pkg, root+"/internal/") {
					names = append(names, pkg)
				}
			}
			continue
		}
		names = append(names, name)
	}
	return names
}

// imports lists, for each package of this module, the packages of it that its code imports.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}: {{join .Imports " "}}`, module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < 5 {
		t.Fatalf("go list shows only %d packages", len(lines))
	}
	found := map[string][]string{}
	for _, line := range lines {
		path, list, _ := strings.Cut(line, ": ")
		pkg := strings.TrimSuffix(strings.TrimPrefix(path, module), ":")
		found[pkg] = nil
		for _, imp := range strings.Fields(list) {
			if dep, ok := strings.CutPrefix(imp, module); ok {
				found[pkg] = append(found[pkg], dep)
			}
		}
	}
	return found
}

func TestDirections(t *testing.T) {
	for pkg, deps := range imports(t) {
		may, ok := allowed[pkg]
		if !ok {
			t.Errorf("%s has no line in the table of allowed imports", pkg)
			continue
		}
		for _, dep := range deps {
			if !slices.Contains(packages(may), dep) {
				t.Errorf("%s imports %s, which is not below it", pkg, dep)
			}
		}
	}
}

// TestTable keeps the table itself free of cycles, of packages that are not there, and of imports that no file has.
func TestTable(t *testing.T) {
	has := imports(t)
	state := map[string]int{} // 1 while below on the stack, 2 when done
	var visit func(pkg string)
	visit = func(pkg string) {
		switch state[pkg] {
		case 1:
			t.Errorf("the table has a cycle through %s", pkg)
			return
		case 2:
			return
		}
		state[pkg] = 1
		for _, dep := range packages(allowed[pkg]) {
			if _, ok := allowed[dep]; !ok {
				t.Errorf("%s may import %s, which has no line of its own", pkg, dep)
			}
			visit(dep)
		}
		state[pkg] = 2
	}
	for pkg, may := range allowed {
		visit(pkg)
		deps, ok := has[pkg]
		if !ok {
			t.Errorf("the table has a line for %s, which is no package", pkg)
		}
		for _, dep := range strings.Fields(may) {
			used := func(d string) bool { return slices.Contains(packages(dep), d) }
			if !slices.ContainsFunc(deps, used) {
				t.Errorf("%s may import %s, and does not", pkg, dep)
			}
		}
	}
}

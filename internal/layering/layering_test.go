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
// A new package needs a line here.
var allowed = map[string]string{
	"tensor":  "",
	"kernels": "tensor",
	"linalg":  "tensor kernels",
	"quant":   "tensor kernels",
	"gptq":    "tensor kernels linalg quant",

	"awq":         "tensor kernels quant",
	"smoothquant": "kernels quant",
	"int8outlier": "tensor kernels quant",

	"formats/safetensors": "internal/atomicfile internal/mmap internal/sniff",
	"formats/checkpoint":  "tensor formats/ggml formats/safetensors internal/mmap internal/sniff",
	"formats/ggml":        "tensor kernels quant",
	"formats/gguf":        "formats/ggml internal/atomicfile internal/mmap",
	"formats/hf":          "formats/ggml formats/gguf formats/safetensors tokenizer",

	"tokenizer": "",
	"model":     "tensor kernels quant formats/ggml",
	"calib":     "tensor kernels int8outlier tokenizer formats/gguf internal/text",
	"eval":      "tokenizer internal/text tensor kernels quant int8outlier formats/ggml model internal/states",
	"profile":   "tensor kernels quant int8outlier formats/ggml model calib eval internal/states",
	"pipeline": "tensor kernels quant gptq awq smoothquant int8outlier formats/ggml formats/gguf model calib eval " +
		"internal/states internal/knapsack",

	"report": "formats/ggml formats/gguf model eval profile pipeline quant",

	"cmd/llmq": "gptq smoothquant formats/ggml formats/gguf formats/hf tokenizer model calib eval profile pipeline report " +
		"kernels internal/atomicfile internal/text internal/bench internal/ui",

	"internal/atomicfile": "",
	"internal/interop":    "",
	"internal/bench":      "tensor kernels gptq formats/ggml model",
	"internal/knapsack":   "",
	"internal/layering":   "",
	"internal/mmap":       "",
	"internal/shared":     "",
	"internal/sniff":      "",
	"internal/states":     "tensor",
	"internal/synth":      "tensor kernels formats/safetensors formats/ggml formats/hf internal/testmodel pipeline",
	"internal/testmodel":  "tensor formats/ggml formats/gguf",
	"internal/text":       "",
	"internal/ui":         "",
}

func TestDirections(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}: {{join .Imports " "}}`, module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < 5 {
		t.Fatalf("go list shows only %d packages", len(lines))
	}
	for _, line := range lines {
		path, imports, _ := strings.Cut(line, ": ")
		pkg := strings.TrimPrefix(path, module)
		may, ok := allowed[pkg]
		if !ok {
			t.Errorf("%s has no line in the table of allowed imports", pkg)
			continue
		}
		for _, imp := range strings.Fields(imports) {
			dep, internal := strings.CutPrefix(imp, module)
			if internal && !slices.Contains(strings.Fields(may), dep) {
				t.Errorf("%s imports %s, which is not below it", pkg, dep)
			}
		}
	}
}

// TestTable keeps the table itself free of cycles and of packages that nothing may be.
func TestTable(t *testing.T) {
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
		for _, dep := range strings.Fields(allowed[pkg]) {
			if _, ok := allowed[dep]; !ok {
				t.Errorf("%s may import %s, which has no line of its own", pkg, dep)
			}
			visit(dep)
		}
		state[pkg] = 2
	}
	for pkg := range allowed {
		visit(pkg)
	}
}

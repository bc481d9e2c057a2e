package pipeline

import (
	"go/build"
	"os"
	"path/filepath"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/smoothquant"
	"github.com/llmq/llmq/tokenizer"
)

// TestPlantedGopher plants outlier features in the built-in model. Rounding to nearest loses several times as much then;
// scaling makes up for it, and AWQ is ahead of rounding to nearest on the clean model.
func TestPlantedGopher(t *testing.T) {
	t.Parallel()
	if os.Getenv("WIDE") == "" {
		t.Skip("quantizes a trained model five times: make wide")
	}
	const context = 256 // that the model was trained with
	clean, err := hf.Open("../testdata/gopher-4m", hf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer clean.Close()
	planted, err := testmodel.Plant(clean, testmodel.Outliers{Channels: 4, Factor: 50})
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.New(clean)
	if err != nil {
		t.Fatal(err)
	}
	bos, add := tok.BOS()
	if !add {
		t.Fatal("gopher-4m does not ask for a BOS token")
	}
	seen := filepath.Join(build.Default.GOROOT, "src/sort/sort.go")
	set, err := calib.Sample([]string{seen}, tok, calib.Options{Tokens: 1536, SeqLen: context})
	if err != nil {
		t.Fatal(err)
	}
	unseen, err := os.ReadFile(filepath.Join(build.Default.GOROOT, "src/bufio/bufio.go"))
	if err != nil {
		t.Fatal(err)
	}
	tokens := tok.Encode(string(unseen), tokenizer.EncodeOptions{})
	base, err := arch.Open(clean)
	if err != nil {
		t.Fatal(err)
	}
	kl := func(src Source, r Recipe) float64 {
		r.Type = ggml.Q4_0
		opt := Options{}
		if _, ok := r.Calibrated(); ok {
			opt.Calib = set
		}
		path, _ := mustRun(t, src, r, opt)
		m, err := arch.Open(open(t, path))
		if err != nil {
			t.Fatal(err)
		}
		res, err := eval.Perplexity(t.Context(), m, tokens, eval.Options{Context: context, Chunks: 10, BOS: &bos, Base: base})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s, smoothing %v: KL divergence %.5f", src.Name(), r.Method.Name(), r.Smooth, res.KL)
		return res.KL
	}
	plain := kl(clean, Recipe{Method: RTN})
	for _, c := range []struct {
		src    Source
		recipe Recipe
		lo, hi float64 // times what rounding to nearest loses on the clean model
	}{
		{planted, Recipe{Method: RTN}, 2, 6},
		{planted, Recipe{Method: RTN, Smooth: &smoothquant.Smoothing{Alpha: 0.5}}, 0, 1.25},
		{clean, Recipe{Method: AWQ}, 0, 0.95},
		{planted, Recipe{Method: AWQ}, 0, 1.15},
	} {
		if got := kl(c.src, c.recipe) / plain; got < c.lo || got > c.hi {
			t.Errorf("%s: %s, smoothing %v: %.2f of what rounding the clean model to nearest loses, want %g to %g",
				c.src.Name(), c.recipe.Method.Name(), c.recipe.Smooth, got, c.lo, c.hi)
		}
	}
}

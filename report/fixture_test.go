package report

import (
	"fmt"
	"math"
	"testing"

	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/profile"
	"github.com/llmq/llmq/quant"
)

const fixtureLayers = 12

// hostile is a name that must stay text wherever it is shown.
const hostile = `<script>alert("x")</script>'"><img src=http://example.com/x.png onerror=alert(1)>`

// quantization is a run of every kind of tensor, error and decision.
func quantization(path string, bytes int64, typ string, factor float64) *Input {
	q := &Quantization{PeakRSS: 3 << 30, Report: &pipeline.Report{
		Output: path, Bytes: bytes, BitsPerWeight: 4.85, Seconds: 1234.5,
		Int8Fallbacks: []pipeline.FallbackReport{
			{Name: "blk.11.ffn_down.weight", From: typ, RelativeError: 0.08, Outliers: 7, Bytes: 123456, Done: true},
			{Name: "blk.10.ffn_down.weight", From: typ, RelativeError: 0.07, Bytes: 123456},
		},
		NoBias:     []string{"blk.0.ffn_up.weight"},
		Assignment: &pipeline.Assignment{MaxBytes: 6 << 30, MaxBPW: 4.9, PredictedKL: 0.0123},
	}}
	add := func(name, typ string, bytes int64, e float64) {
		q.Tensors = append(q.Tensors, pipeline.TensorReport{Name: name, Type: typ, Bytes: bytes, RelativeError: e})
	}
	add("token_embd.weight", "F16", 1<<29, 1e-9)
	add("output_norm.weight", "F32", 1<<14, 0)
	for l := range fixtureLayers {
		for k, linear := range linearOrder {
			name := fmt.Sprintf("blk.%d.%s.weight", l, linear)
			add(name, typ, 1<<22, factor*math.Pow(1.3, float64(l))*float64(k+1))
			q.Assignment.Tensors = append(q.Assignment.Tensors, pipeline.AssignedTensor{Name: name, Type: typ, PredictedKL: 1e-4 * float64(k+l)})
		}
		add(fmt.Sprintf("blk.%d.attn_norm.weight", l), "F32", 1<<14, 0)
		group := fmt.Sprintf("blk.%d.attn_in", l)
		q.Foldings = append(q.Foldings, quant.Folding{Transform: "smoothquant", Group: group, Alpha: 0.55, Before: 0.0123, After: 0.00456},
			quant.Folding{Transform: "smoothquant", Group: fmt.Sprintf("blk.%d.attn_out", l), Skipped: "no alpha lowers its error"})
		before := pipeline.Spread{Least: 0.2, Median: 1.5, P99: 12, Largest: 61, HistogramRange: 64, Histogram: counts(pipeline.SpreadBins)}
		after := pipeline.Spread{Least: 0.4, Median: 1, P99: 2.5, Largest: 3.1, HistogramRange: 4, Histogram: counts(pipeline.SpreadBins)}
		q.Ranges = append(q.Ranges, pipeline.GroupRanges{Group: group, InputBefore: before, InputAfter: after,
			WeightsBefore: after, WeightsAfter: before})
	}
	add("blk.3."+hostile+".weight", typ, 1<<20, 0.01)
	add(hostile, typ, 1<<20, 0.02)
	return &Input{Path: "runs/" + typ + ".json", Quantization: q}
}

// counts are those of a bell.
func counts(n int) []int64 {
	c := make([]int64, n)
	for i := range c {
		x := float64(i)/float64(n) - 0.6
		c[i] = int64(1e6 * math.Exp(-40*x*x))
	}
	return c
}

func evaluation(path string, bytes int64, perplexity, kl float64) *Input {
	return &Input{Path: "runs/eval.json", Evaluation: &Evaluation{
		Subject: Subject{Model: path, Bytes: bytes, BitsPerWeight: 4.85, Base: "models/A-model-with-a-rather-long-name-8B"},
		Text:    "text/wiki.test.txt",
		Result: &eval.Result{Perplexity: eval.Figure(perplexity), StdErr: 0.05, TokensScored: 100 * 255, Context: 512, Chunks: 100, BOS: true,
			Divergence: &eval.Divergence{KL: kl, KLStdErr: kl / 50, SameTop: 0.95}},
	}}
}

func taskEvaluation() *Input {
	base, difference := eval.Figure(0.71), eval.Figure(-0.01)
	return &Input{Path: "runs/task.json", Task: &TaskEvaluation{
		Subject: Subject{Model: "out/a.gguf", Base: "models/A"}, Task: "tasks/arc.jsonl",
		TaskResult: &eval.TaskResult{Kind: "choices", Examples: 500,
			Accuracy: &eval.Measure{Value: 0.7, StdErr: 0.02, Base: &base, Difference: &difference, DifferenceStdErr: &difference}},
	}}
}

func profiled() *Input {
	p := &profile.Profile{Model: "models/A", Layers: fixtureLayers, Type: "Q4_K",
		Calibration: profile.Calibration{Sequences: 128, SequenceLength: 2048, Sources: []string{"wiki.txt", hostile}},
		Fallback:    []profile.Fallback{{Linear: "blk.3.ffn_down.weight", Reason: "relative output error 0.1 exceeds " + hostile}},
		Checklist: []profile.Check{{Question: "Is there enough text?", OK: true, Evidence: "128 sequences"},
			{Question: "Did the ranges settle?", Evidence: "not of 1 of 48 inputs", Advice: "calibrate on more"}},
	}
	alpha := 0.6
	for l := range fixtureLayers {
		for k, group := range []string{"attn_in", "attn_out", "mlp_in", "mlp_out"} {
			in := profile.Input{Name: fmt.Sprintf("blk.%d.%s", l, group), Layer: l,
				Distribution: profile.Distribution{Min: -12.3, Max: 45.6, MeanAbs: 0.5, Kurtosis: 88, Histogram: counts(64), HistogramRange: 64},
				FeatureRange: profile.Quantiles{Min: 0.1, Median: 1, P99: 7, Max: 45.6},
				Clip:         profile.Clip{MinMax: 45.6, MSE: 12.3},
			}
			if k == 0 {
				in.OutlierFeatures, in.Smoothing.Alpha = []int{17}, &alpha
			}
			for f := range 8 {
				in.LargestFeatures = append(in.LargestFeatures, profile.Feature{Index: 17 + 100*f, AbsMax: 45.6 / float64(f+1)})
			}
			p.Inputs = append(p.Inputs, in)
		}
		for k, linear := range linearOrder {
			lin := profile.Linear{Name: fmt.Sprintf("blk.%d.%s.weight", l, linear), Type: "Q4_K", OutputError: 0.001 * float64(k+l+1),
				Weights: profile.Distribution{Min: -0.5, Max: 0.5, MeanAbs: 0.02, Kurtosis: 4, Histogram: counts(64), HistogramRange: 0.5}}
			if k == 6 {
				lin.KL = &profile.KL{Mean: 0.0001 * float64(l+1), StdErr: 1e-5}
			}
			p.Linears = append(p.Linears, lin)
		}
	}
	return &Input{Path: "profile.json", Profile: p}
}

// gguf is a file with errors for its tensors.
func ggufFile(path string, bytes int64) *Input {
	m := &Model{Bytes: bytes, Metadata: gguf.Metadata{{Key: model.MethodKey, Value: "awq+gptq"},
		{Key: "llmq.calibration.sources", Value: []string{"wiki.txt", hostile}},
		{Key: model.OutliersPrefix + "blk.0.attn_q.weight", Value: []uint32{3, 17}}}}
	var errors []float32
	for l := range fixtureLayers {
		for _, linear := range linearOrder {
			m.Tensors = append(m.Tensors, ggml.Info{Name: fmt.Sprintf("blk.%d.%s.weight", l, linear), Type: ggml.Q4_K, Shape: []int{256, 256}})
			errors = append(errors, 0.002)
		}
	}
	m.Metadata.Set(model.ErrorsKey, errors)
	return &Input{Path: path, Model: m}
}

// everything has one of everything that a page can show.
func everything(t *testing.T) []*Input {
	t.Helper()
	return []*Input{
		quantization("out/a.gguf", 5<<30, "Q4_K", 0.0005), quantization("out/b.gguf", 4<<30, "Q3_K", 0.002),
		evaluation("out/a.gguf", 5<<30, 6.4, 0.006), evaluation("out/b.gguf", 4<<30, 6.9, 0.03),
		evaluation("peers/"+hostile, 5<<30, 6.5, 0.009), evaluation("models/A", 16<<30, 6.33, 0),
		ggufFile("elsewhere/a.gguf", 5<<30), ggufFile("c.gguf", 6<<30), taskEvaluation(), profiled(),
	}
}

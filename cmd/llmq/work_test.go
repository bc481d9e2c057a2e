//go:build unix

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/llmq/llmq/internal/s3test"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/store"
)

// runUntil starts a command line in a process of its own and sends it a signal when its progress has a line that begins
// with a prefix. It returns what it has printed after that.
func runUntil(t *testing.T, prefix string, s os.Signal, args ...string) (*os.ProcessState, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), argsVariable+"="+strings.Join(args, "\n"))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(stderr)
	var before []string
	for said.Scan() && !strings.HasPrefix(said.Text(), prefix) {
		before = append(before, said.Text())
	}
	cmd.Process.Signal(s)
	var after []string
	for said.Scan() {
		after = append(after, said.Text())
	}
	cmd.Wait()
	if cmd.ProcessState.Success() {
		t.Fatalf("the process has not been stopped at %q: %q", prefix, before)
	}
	return cmd.ProcessState, strings.Join(after, "\n")
}

// TestWork: a run that is killed, and interrupted, goes on where it was, and writes what it would have written; status tells
// how far it is, and its folder is refused to others.
func TestWork(t *testing.T) {
	dir, out, work := folder(t, "llama"), t.TempDir(), filepath.Join(t.TempDir(), "work")
	refine := "200" // a layer takes long enough to be killed in
	if testing.Short() {
		refine = "40"
	}
	options := append([]string{"--refine", refine, "--calib-tokens", "512"}, calibrate...)
	run := func(file string, more ...string) []string {
		return slices.Concat([]string{"quantize", dir, "-o", filepath.Join(out, file)}, options, more)
	}
	must(t, run("whole.gguf")...)
	want, err := os.ReadFile(filepath.Join(out, "whole.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	const keys = "model output method type phase run layers layer_seconds head working layers_done layers_left seconds_per_layer seconds_left " +
		"work_bytes noted"
	resumed := run("out.gguf", "--work", work)

	runUntil(t, "quantize: layer 2/2", syscall.SIGKILL, resumed...)
	s := mustJSON(t, keys, "status", work)
	if s["phase"] != "layers" || s["working"] != false || s["layers_done"] != 1.0 || s["layers_left"] != 1.0 || !(s["seconds_left"].(float64) > 0) {
		t.Errorf("killed in the second of two layers, the status is %v", s)
	}
	if r := must(t, "status", work); !strings.Contains(r.stdout, "1 of 2") || !strings.Contains(r.stdout, "stopped: the same command goes on") {
		t.Errorf("status prints\n%s", r.stdout)
	}

	state, said := runUntil(t, "quantize: layer 2/2", os.Interrupt, resumed...)
	if state.ExitCode() != exitInterrupted || !strings.Contains(said, "kept in "+work+": the same command goes on there") {
		t.Errorf("interrupted: %v, %q", state, said)
	}

	for refused, other := range map[string][]string{
		"another recipe":           run("out.gguf", "--work", work, "--bits", "3"),
		"another calibration text": run("out.gguf", "--work", work, "--seed", "7"),
		"another model":            append([]string{"quantize", folder(t, "qwen2"), "-o", filepath.Join(out, "out.gguf"), "--work", work}, options...),
	} {
		if r := llmq(t, other...); r.code != exitFailure || !strings.Contains(r.stderr, refused) {
			t.Errorf("%s: exit %d, %s", refused, r.code, r.stderr)
		}
	}

	r := must(t, resumed...)
	if strings.Contains(r.stderr, "quantize: layer 1/2\n") || strings.Contains(r.stderr, "quantize: layer 1/2 (") {
		t.Errorf("the first layer is done again:\n%s", r.stderr)
	}
	got, err := os.ReadFile(filepath.Join(out, "out.gguf"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("another file than without --work, %v", err)
	}
	if s := mustJSON(t, keys, "status", work); s["phase"] != "done" || s["work_bytes"] != 0.0 {
		t.Errorf("in the end the status is %v", s)
	}
	if left := listing(t, work); len(left) != 3 {
		t.Errorf("in the end the folder holds %v", left)
	}
}

// TestWorkErrors: what is wrong with a folder is said before anything is computed.
func TestWorkErrors(t *testing.T) {
	dir, out := folder(t, "llama"), filepath.Join(t.TempDir(), "out.gguf")
	full := filepath.Dir(textFile(t, "notes.txt", "x"))
	for want, args := range map[string][]string{
		"holds \"notes.txt\"":       append([]string{"quantize", dir, "-o", out, "--work", full}, calibrate...),
		"give some with --calib":    {"quantize", dir, "-o", out, "--method", "rtn", "--work", t.TempDir()},
		"no run has worked in this": {"status", full},
		"no FOLDER given":           {"status"},
	} {
		if r := llmq(t, args...); r.code == exitOK || !strings.Contains(r.stderr, want) {
			t.Errorf("%q: exit %d, %s", args, r.code, r.stderr)
		}
	}
	dry := must(t, append([]string{"quantize", dir, "-o", out, "--dry-run"}, calibrate...)...)
	if !strings.Contains(dry.stdout, "with --work at most") {
		t.Errorf("--dry-run prints\n%s", dry.stdout)
	}
}

// TestEvalWork: an evaluation that is killed goes on, and finds what an undisturbed one finds.
func TestEvalWork(t *testing.T) {
	dir, work := folder(t, "llama"), filepath.Join(t.TempDir(), "work")
	args := []string{"eval", dir, "--base", folder(t, "llama"), "--text", license, "--context", "64", "--json"}
	figures := func(args ...string) map[string]any {
		var v map[string]any
		if err := json.Unmarshal([]byte(must(t, args...).stdout), &v); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"seconds", "tokens_per_second", "peak_rss_bytes"} {
			delete(v, key)
		}
		return v
	}
	want := figures(args...)
	args = append(args, "--work", work)
	runUntil(t, "evaluate: layer 2/2", syscall.SIGKILL, args...)
	if got := figures(args...); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if r := must(t, "status", work); !strings.Contains(r.stdout, "done") {
		t.Errorf("status prints\n%s", r.stdout)
	}
	if r := llmq(t, append(args, "--chunks", "2")...); r.code != exitFailure || !strings.Contains(r.stderr, "another set of options") {
		t.Errorf("other options: exit %d, %s", r.code, r.stderr)
	}
}

// TestProfileWork: a profile that is killed goes on, and writes what an undisturbed one writes, but for the time.
func TestProfileWork(t *testing.T) {
	dir, out, work := folder(t, "llama"), t.TempDir(), filepath.Join(t.TempDir(), "work")
	profile := func(name string, more ...string) []string {
		return slices.Concat([]string{"profile", dir, "-o", filepath.Join(out, name), "--kl-tokens", "128"}, calibrate, more)
	}
	read := func(name string) map[string]any {
		b, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		var v map[string]any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		delete(v, "seconds")
		return v
	}
	must(t, profile("whole.json")...)
	runUntil(t, "profile: layer 2/2", syscall.SIGKILL, profile("out.json", "--work", work)...)
	if r := llmq(t, profile("out.json", "--work", work, "--type", "q3_k")...); r.code != exitFailure || !strings.Contains(r.stderr, "another set of options") {
		t.Errorf("another type: exit %d, %s", r.code, r.stderr)
	}
	must(t, profile("out.json", "--work", work)...)
	if !reflect.DeepEqual(read("out.json"), read("whole.json")) {
		t.Error("another profile than without --work")
	}
}

// TestWorkBucket: a run that keeps its work in a bucket, that is killed and finds a value damaged when it goes on, writes what it
// would have written; status tells how far it is, and nothing that is not needed stays there.
func TestWorkBucket(t *testing.T) {
	s := s3test.Start(t)
	dir, out := folder(t, "llama"), t.TempDir()
	const work = "s3://" + s3test.Bucket + "/runs/tiny"
	options := append([]string{"--refine", "30", "--calib-tokens", "256"}, calibrate...)
	run := func(file string, more ...string) []string {
		return slices.Concat([]string{"quantize", dir, "-o", filepath.Join(out, file)}, options, more)
	}
	must(t, run("whole.gguf")...)
	want, err := os.ReadFile(filepath.Join(out, "whole.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	resumed := run("out.gguf", "--work", work)
	runUntil(t, "quantize: layer 2/2", syscall.SIGKILL, resumed...)
	if r := must(t, "status", work); !strings.Contains(r.stdout, "1 of 2") || !strings.Contains(r.stdout, ", running") {
		t.Errorf("just after it was killed, status prints\n%s", r.stdout)
	}
	s.Advance(2 * time.Minute) // its lease runs out
	if r := must(t, "status", work); !strings.Contains(r.stdout, "stopped: the same command goes on") {
		t.Errorf("status prints\n%s", r.stdout)
	}
	const layer = "runs/tiny/run1-layer0000.value"
	damaged := s.Get(t, layer)
	if damaged == nil {
		t.Fatalf("kept are %q", s.Keys(t))
	}
	damaged[len(damaged)/2] ^= 1
	s.Put(t, layer, damaged)
	r := must(t, resumed...)
	if !strings.Contains(r.stderr, "run1-layer0000 was not what had been written there, and has been made again") {
		t.Errorf("nothing is said of a damaged value:\n%s", r.stderr)
	}
	got, err := os.ReadFile(filepath.Join(out, "out.gguf"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("another file than without --work, %v", err)
	}
	if keys := s.Keys(t); !slices.Equal(keys, []string{"runs/tiny/progress.json", "runs/tiny/run.json"}) {
		t.Errorf("in the end the bucket holds %q", keys)
	}
	if r := llmq(t, run("none.gguf", "--work", "s3://absent/x")...); r.code != exitFailure || !strings.Contains(r.stderr, `there is no bucket "absent"`) {
		t.Errorf("no bucket: exit %d, %s", r.code, r.stderr)
	}
}

// TestStatusWorkers: status lists those who take part in a run on many machines, while it goes on.
func TestStatusWorkers(t *testing.T) {
	work := t.TempDir()
	d, err := store.OpenDir(work, nil)
	if err != nil {
		t.Fatal(err)
	}
	came := time.Now().Add(-time.Minute)
	if err := errors.Join(d.Note(&store.Standing{Model: "m", Phase: store.PhaseLayers, Layers: 3}), d.NoteWorkers([]store.Worker{
		{Name: "node1-7", Since: came, Unit: "run1-layer0000-stage01-shard03", Done: 4}, {Name: "node2-8", Since: came},
	})); err != nil {
		t.Fatal(err)
	}
	text := must(t, "status", work).stdout
	for _, want := range []string{"node1-7, for 1m", "4 units done, run1-layer0000-stage01-shard03", "node2-8, for 1m", "0 units done, waits"} {
		if !strings.Contains(text, want) {
			t.Errorf("status does not print %q:\n%s", want, text)
		}
	}
	const keys = "model output method type phase run layers layer_seconds head working layers_done layers_left seconds_per_layer seconds_left " +
		"work_bytes noted"
	list := mustJSON(t, keys+" workers", "status", work)["workers"].([]any)
	if first := list[0].(map[string]any); len(list) != 2 || first["name"] != "node1-7" || first["done"] != 4.0 || first["unit"] != "run1-layer0000-stage01-shard03" {
		t.Errorf("workers are %v", list)
	}
	if err := d.Close(); err != nil { // as when the coordinator is killed
		t.Fatal(err)
	}
	mustJSON(t, keys, "status", work)
	if d, err = store.OpenDir(work, nil); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.NoteWorkers(nil); err != nil {
		t.Fatal(err)
	}
	mustJSON(t, keys, "status", work)
	if _, err := os.Stat(filepath.Join(work, "workers.json")); err == nil {
		t.Error("the list of workers stays")
	}
}

// TestWorkFinished: a run that was killed after its file had its name, and before its folder was cleared, is known to be over.
func TestWorkFinished(t *testing.T) {
	dir, work := folder(t, "llama"), filepath.Join(t.TempDir(), "work")
	out := filepath.Join(t.TempDir(), "out.gguf")
	run := append([]string{"quantize", dir, "-o", out, "--work", work, "--calib-tokens", "128", "--refine", "0", "--output-hessian", "off"}, calibrate...)
	must(t, run...)
	progress := filepath.Join(work, "progress.json")
	b, err := os.ReadFile(progress)
	if err == nil {
		err = os.WriteFile(progress, bytes.Replace(b, []byte(`"done"`), []byte(`"finish"`), 1), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r := must(t, "status", work); !strings.Contains(r.stdout, "done, but it was killed before it cleared the folder: the same command does") {
		t.Errorf("status prints\n%s", r.stdout)
	}
	whole, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	partial := filepath.Join(work, "run1-output.partial")
	if err := os.WriteFile(partial, nil, 0o644); err != nil { // another file is in the way
		t.Fatal(err)
	}
	if r := llmq(t, run...); r.code != exitFailure || !strings.Contains(r.stderr, "exists") || !strings.Contains(r.stderr, "--force goes on") {
		t.Errorf("with a partial file: exit %d, %s", r.code, r.stderr)
	}
	if err := os.Remove(partial); err != nil {
		t.Fatal(err)
	}
	unsure := quantizeOptions{Work: work}
	unsure.Output, unsure.Format = out, "gptq"
	if run, err := unsure.finished(t.Context(), fs.ErrExist); run != nil || !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "was about to put") {
		t.Errorf("a folder, of which nothing tells whether it is the run's, is taken for it: %v", err)
	}
	left := filepath.Join(work, "run1-layer0000.value")
	if err := os.WriteFile(left, []byte("what was not cleared"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := llmq(t, append(slices.Clone(run), "--calib-tokens", "512")...); r.code != exitFailure || !strings.Contains(r.stderr, "calibration text") {
		t.Errorf("another text: exit %d, %s", r.code, r.stderr)
	}
	if r := must(t, run...); !strings.Contains(r.stderr, "was whole already") {
		t.Errorf("again: %s", r.stderr)
	}
	if now, err := os.ReadFile(out); err != nil || !bytes.Equal(now, whole) {
		t.Errorf("the file has changed: %v", err)
	}
	if _, err := os.Stat(left); err == nil {
		t.Error("the folder is not cleared")
	}
	if r := llmq(t, run...); r.code != exitFailure || !strings.Contains(r.stderr, "exists") {
		t.Errorf("once more: exit %d, %s", r.code, r.stderr)
	}
	if err := os.WriteFile(progress, bytes.Replace(b, []byte(`"done"`), []byte(`"finish"`), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(out); err != nil {
		t.Fatal(err)
	}
	if r := must(t, "status", work); !strings.Contains(r.stdout, "stopped: the same command goes on") {
		t.Errorf("without its file, status prints\n%s", r.stdout)
	}
	must(t, run...)
}

// changedSource is a source whose files are not what they were.
type changedSource struct{ pipeline.Source }

func (changedSource) Changed() error { return errors.New("it was changed") }

// TestWorkOfOthers: nobody is told that the same command goes on in a folder that will be refused.
func TestWorkOfOthers(t *testing.T) {
	work, err := store.OpenDir(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer work.Close()
	var said strings.Builder
	a := &app{stderr: &said}
	a.printWork(work, false, changedSource{})
	if s := said.String(); strings.Contains(s, "the same command goes on") || !strings.Contains(s, "of the files as they were") {
		t.Errorf("said %q", s)
	}
}

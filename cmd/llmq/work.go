package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/profile"
	"github.com/llmq/llmq/store"
)

const workUsage = "keep what is done in `FOLDER`, or s3://BUCKET/PREFIX: the same command goes on there after it was interrupted or killed; see llmq status"

// openWork opens the folder of --work for a run that depends on parts, on the files of some sources and on others.
func (a *app) openWork(ctx context.Context, folder string, parts []store.Part, sources []pipeline.Source, others ...string) (store.Folder, error) {
	var files []string
	for _, src := range sources {
		if i, ok := src.(interface{ Identity() string }); ok && i.Identity() != "" {
			continue // SourceDigest has it
		}
		if f, ok := src.(interface{ Paths() []string }); ok {
			files = append(files, f.Paths()...)
		} else {
			files = append(files, src.Name())
		}
	}
	for _, path := range others {
		if path != "" {
			files = append(files, path)
		}
	}
	digest, err := filesDigest(files)
	if err != nil {
		return nil, err
	}
	build, err := buildDigest()
	if err != nil {
		return nil, err
	}
	return store.Open(ctx, folder, slices.Concat(parts, []store.Part{
		{What: "state of the model's files", Digest: digest}, {What: "llmq version", Digest: build},
	}), func(message string) { fmt.Fprintln(a.stderr, "llmq:", message) })
}

// openWork opens the folder of --work for a run.
func (o *quantizeOptions) openWork(ctx context.Context, a *app, src pipeline.Source, plan *pipeline.Plan, popt pipeline.Options) (store.Folder, error) {
	parts, err := pipeline.WorkParts(src, plan, o.budget(), popt)
	if err != nil {
		return nil, err
	}
	return a.openWork(ctx, o.Work, parts, []pipeline.Source{src}, o.LoRA)
}

// finished is what is known of the run in the folder of --work if that has given the output its name, and was killed before it could clear the
// folder. err says that the output exists, and is returned if that is not so.
func (o *quantizeOptions) finished(ctx context.Context, err error) (*store.Overview, error) {
	if o.Work == "" || o.DryRun || !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	look, e := store.Look(ctx, o.Work)
	switch {
	case e != nil || look.Working || look.Phase != store.PhaseFinish || !samePath(look.Output, o.Output):
		return nil, err
	case look.Partial:
		return nil, fmt.Errorf("%w: the run in %s has not put all that it has made there: --force goes on, and replaces it", err, o.Work)
	case store.IsBucket(o.Work) || o.folder(): // no partial output tells whether what is there is this run's
		return nil, fmt.Errorf("%w: the run in %s was about to put its output there: if that is it, remove %[2]s", err, o.Work)
	}
	return look, nil
}

// clearWork removes what a folder holds of a run.
func clearWork(work store.Folder) error {
	names, err := work.Names()
	if err == nil {
		err = work.Delete(names...)
	}
	if d, ok := work.(*store.Dir); ok {
		err = errors.Join(err, d.RemovePartials(""))
	}
	return err
}

// clearFinished has the folder of a run that has finished hold nothing but how it went.
func clearFinished(work store.Folder, run *store.Overview) error {
	if err := clearWork(work); err != nil {
		return err
	}
	run.Phase = store.PhaseDone
	return work.Note(&run.Standing)
}

// openWork opens the folder of --work for an evaluation of m on tokens.
func (o *evalOptions) openWork(ctx context.Context, a *app, m *model.Model, tokens []int32, eopt *eval.Options) (store.Folder, error) {
	var parts []store.Part
	var sources []pipeline.Source
	add := func(what string, m *model.Model) error {
		src := m.Source.(pipeline.Source) // as openSource has returned it
		digest, err := pipeline.SourceDigest(src)
		parts, sources = append(parts, store.Part{What: what, Digest: digest}), append(sources, src)
		return err
	}
	if err := add("model", m); err != nil {
		return nil, err
	}
	if eopt.Base != nil {
		if err := add("base model", eopt.Base); err != nil {
			return nil, err
		}
	}
	bos := int32(-1)
	if eopt.BOS != nil {
		bos = *eopt.BOS
	}
	parts = append(parts,
		store.Part{What: "text", Digest: store.Digest(func(w io.Writer) { fmt.Fprint(w, tokens) })},
		store.Part{What: "set of options", Digest: fmt.Sprintf("%d %d %v %d %q %v", eopt.Context, eopt.Chunks, eopt.ScoreAll, bos, eopt.Activations, m.Precision)},
		pipeline.TierPart())
	return a.openWork(ctx, o.Work, parts, sources)
}

// openWork opens the folder of --work for a profile of src on a calibration set.
func (o *profileOptions) openWork(ctx context.Context, a *app, src pipeline.Source, set *calib.Set, popt *profile.Options) (store.Folder, error) {
	digest, err := pipeline.SourceDigest(src)
	if err != nil {
		return nil, err
	}
	return a.openWork(ctx, o.Work, []store.Part{
		{What: "model", Digest: digest},
		{What: "calibration text", Digest: fmt.Sprintf("%d %d %s %v", len(set.Sequences), set.SeqLen, set.SHA256(), set.Metadata())},
		{What: "held-out text", Digest: store.Digest(func(w io.Writer) { fmt.Fprint(w, popt.HeldOut) })},
		{What: "set of options", Digest: fmt.Sprintf("%s %v %d", popt.Type.Name, popt.FallbackError, popt.KLLinears)},
		pipeline.TierPart(),
	}, []pipeline.Source{src})
}

// filesDigest is a digest of names, sizes and times of change of files, and in folders of what a checkpoint consists of: what
// they hold is gigabytes.
func filesDigest(paths []string) (string, error) {
	var files []string
	for _, path := range paths {
		entries, err := os.ReadDir(path)
		if err != nil { // a file
			files = append(files, path)
			continue
		}
		for _, e := range entries {
			switch filepath.Ext(e.Name()) {
			case ".safetensors", ".bin", ".pth", ".json", ".model", ".tiktoken", ".jinja", ".txt":
				files = append(files, filepath.Join(path, e.Name()))
			}
		}
	}
	var err error
	digest := store.Digest(func(w io.Writer) {
		for _, file := range files {
			info, e := os.Stat(file) // through links, as Hugging Face's cache has them
			if e != nil {
				err = e
				return
			}
			fmt.Fprintf(w, "%q %d %d\n", info.Name(), info.Size(), info.ModTime().UnixNano())
		}
	})
	return digest, err
}

// buildDigest tells this program from others. One that was not built from a commit as it is goes by its file.
func buildDigest() (string, error) {
	info, ok := debug.ReadBuildInfo()
	if ok && info.Main.Version != "" && info.Main.Version != "(devel)" && !strings.Contains(info.Main.Version, "+dirty") {
		id := info.Main.Version + " " + info.GoVersion
		for _, s := range info.Settings { // instructions that the compiler takes, and what is left out
			switch s.Key {
			case "GOARCH", "GOAMD64", "GOARM64", "-tags":
				id += " " + s.Key + "=" + s.Value
			}
		}
		return id, nil
	}
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	digest := store.Digest(func(w io.Writer) { _, err = io.Copy(w, f) })
	return digest, err
}

// printWork says, when a run of some sources has ended, what its folder was good for.
func (a *app) printWork(work store.Folder, done bool, sources ...model.Source) {
	for _, name := range work.Damaged() {
		a.warn("%s: %s was not what had been written there, and has been made again", work.Path(), name)
	}
	if done {
		return
	}
	changed := slices.ContainsFunc(sources, func(src model.Source) bool { return model.Unchanged(src) != nil })
	if changed {
		fmt.Fprintf(a.stderr, "llmq: what is done of the files as they were is kept in %s: for those that are there now, remove it or give another\n", work.Path())
	} else {
		fmt.Fprintf(a.stderr, "llmq: what is done is kept in %s: the same command goes on there\n", work.Path())
	}
}

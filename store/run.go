package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"
)

// Part is one thing that a run's results depend on: what a user calls it, and a digest of it.
type Part struct {
	What   string `json:"what"` // "model", "calibration text"
	Digest string `json:"digest"`
}

// Digest is the digest of what write writes.
func Digest(write func(w io.Writer)) string {
	h := sha256.New()
	b := bufio.NewWriterSize(h, 1<<16)
	write(b)
	b.Flush() // a hash takes everything
	return hex.EncodeToString(h.Sum(nil))
}

// Names of a folder's files: runName says what run it belongs to, and is held by whoever works in it; progressName says how
// far that is, and workersName who takes part; values have valueSuffix, partial outputs partialInfix.
const (
	runName      = "run.json"
	progressName = "progress.json"
	workersName  = "workers.json"
	valueSuffix  = ".value"
)

// run is the file runName.
type run struct {
	Format int    `json:"format"`
	Parts  []Part `json:"parts"`
}

// format changes when values are written in another way.
const format = 1

// OtherRunError says that a folder belongs to a run of something else.
type OtherRunError struct {
	Path string
	What []string // that differs
}

func (e *OtherRunError) Error() string {
	return fmt.Sprintf("%s: holds the work of a run with another %s: take that again, or another folder, or remove this one to start over",
		e.Path, strings.Join(e.What, ", another "))
}

// begin makes a run's folder of an empty one, unless it is one already.
func begin(f files, parts []Part) error {
	c, err := f.read(runName)
	if err == nil {
		return c.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	list, err := f.list()
	if err != nil {
		return err
	}
	for _, i := range list {
		return fmt.Errorf("%s: holds %q, which no run has put there: give an empty folder, or one that is not there yet", f.Path(), i.name)
	}
	err = writeJSON(f, runName, run{format, parts}, false)
	if errors.Is(err, fs.ErrExist) { // another process was quicker: its run is read next
		return nil
	}
	return err
}

func readRun(f files) (*run, error) {
	b, err := readAll(f, runName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: no run has worked in this folder: it has no %s", f.Path(), runName)
	}
	if err != nil {
		return nil, err
	}
	var r run
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s/%s: %w: remove the folder to start over", f.Path(), runName, err)
	}
	if r.Format != format {
		return nil, fmt.Errorf("%s/%s: is of format %d, this llmq writes %d", f.Path(), runName, r.Format, format)
	}
	return &r, nil
}

// belongs refuses a folder of a run that depends on something else.
func belongs(f files, parts []Part) error {
	r, err := readRun(f)
	if err != nil {
		return err
	}
	if what := differing(r.Parts, parts); len(what) > 0 {
		return &OtherRunError{f.Path(), what}
	}
	return nil
}

// differing lists what is not the same of two runs.
func differing(a, b []Part) (what []string) {
	for _, p := range b {
		if !slices.Contains(a, p) {
			what = append(what, p.What)
		}
	}
	for _, p := range a {
		if !slices.ContainsFunc(b, func(o Part) bool { return o.What == p.What }) {
			what = append(what, p.What)
		}
	}
	return what
}

func identity(parts []Part) string {
	return Digest(func(w io.Writer) { json.NewEncoder(w).Encode(parts) })
}

// Note implements Folder.
func (v *values) Note(s *Standing) error { return writeJSON(v.files, progressName, s, true) }

// NoteWorkers implements Folder.
func (v *values) NoteWorkers(list []Worker) error {
	if len(list) == 0 {
		return v.remove(workersName)
	}
	return writeJSON(v.files, workersName, list, true)
}

func writeJSON(f files, name string, v any, replace bool) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	w, err := f.create(name, int64(len(b)+1), creation{replace: replace})
	if err != nil {
		return err
	}
	defer w.Abort() // no effect after Commit
	if _, err := w.Write(append(b, '\n')); err != nil {
		return err
	}
	return w.Commit()
}

// readAll reads a small file.
func readAll(f files, name string) ([]byte, error) {
	c, err := f.read(name)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r, err := c.reader()
	if err != nil {
		return nil, err
	}
	const most = 1 << 20
	return io.ReadAll(io.LimitReader(r, most))
}

// Overview is what can be seen of a folder without holding it.
type Overview struct {
	Standing           // zero if nothing was noted
	Working  bool      // a process works in it
	Workers  []Worker  // that take part, as they were noted last; none if no process works in it
	Bytes    int64     // of its values, and of its partial output
	Noted    time.Time // when the Standing was noted
	Partial  bool      // there is a partial output: it has not got its name yet
}

// look reads how far the run in a folder is; working says whether somebody works there.
func look(f files, working func() (bool, error)) (*Overview, error) {
	if _, err := readRun(f); err != nil {
		return nil, err
	}
	o := &Overview{Standing: Standing{LayerSeconds: []float64{}}}
	var err error
	if o.Working, err = working(); err != nil {
		return nil, err
	}
	list, err := f.list()
	if err != nil {
		return nil, err
	}
	for _, i := range list {
		switch {
		case strings.HasSuffix(i.name, valueSuffix), isPartial(i.name):
			o.Bytes += i.size
			o.Partial = o.Partial || isPartial(i.name)
		case i.name == progressName:
			o.Noted = i.changed
		}
	}
	if err := readJSON(f, progressName, &o.Standing); err != nil {
		return nil, err
	}
	if o.Working { // a coordinator that was killed has left its list
		err = readJSON(f, workersName, &o.Workers)
	}
	return o, err
}

// readJSON reads a small file into v, or nothing if there is none.
func readJSON(f files, name string, v any) error {
	b, err := readAll(f, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		if err = json.NewDecoder(bytes.NewReader(b)).Decode(v); err != nil {
			err = fmt.Errorf("%s/%s: %w", f.Path(), name, err)
		}
	}
	return err
}

//go:build !nonats

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/store"
)

// quick is an AckWait for tests: workers that are merely slow may count as lost, which must not matter.
const quick = 300 * time.Millisecond

// echo puts units' specs as their values, and notes who did what.
type echo struct {
	values store.Shared
	name   string
	before func(ctx context.Context, name string, u engine.Unit) (spec []byte, err error) // nil: u.Spec
	done   *sync.Map
}

func (e *echo) Do(ctx context.Context, u engine.Unit) (string, error) {
	spec := []byte(u.Spec)
	if e.before != nil {
		var err error
		if spec, err = e.before(ctx, e.name, u); err != nil {
			return "", err
		}
	}
	e.done.Store(u.Name, e.name)
	return e.values.Put(u.Name, false, func(w io.Writer) error {
		_, err := w.Write(spec)
		return err
	})
}

func (e *echo) Close() error { return nil }

// cluster is a run in a folder.
type cluster struct {
	t      *testing.T
	folder *store.Dir
	c      *Coordinator
	before func(ctx context.Context, name string, u engine.Unit) ([]byte, error)
	done   sync.Map // who did a unit last
	wg     sync.WaitGroup
}

func start(t *testing.T) *cluster {
	d, err := store.OpenDir(t.TempDir(), []store.Part{{What: "test", Digest: t.Name()}})
	if err != nil {
		t.Fatal(err)
	}
	cl := &cluster{t: t, folder: d}
	cl.coordinate(Options{})
	t.Cleanup(func() { d.Close() })
	return cl
}

func (cl *cluster) coordinate(opt Options) {
	cl.t.Helper()
	opt.Run, opt.Values, opt.Build, opt.Tier, opt.AckWait = cl.folder.ID(), cl.folder, "build", "tier", quick
	var err error
	if cl.c, err = New(cl.t.Context(), opt); err != nil {
		cl.t.Fatal(err)
	}
	if err := cl.c.Begin(cl.t.Context(), []byte("job")); err != nil {
		cl.t.Fatal(err)
	}
}

// join starts a worker, which ends with the run or when cancel is called; its error comes through ended.
func (cl *cluster) join(w Worker, name string) (cancel func(), ended <-chan error) {
	ctx, cancel := context.WithCancel(cl.t.Context())
	w.Name, w.Values = name, cl.folder
	w.Make = func(_ context.Context, job []byte) (engine.Worker, error) {
		if string(job) != "job" {
			return nil, fmt.Errorf("the job is %q", job)
		}
		return &echo{cl.folder, name, cl.before, &cl.done}, nil
	}
	errs := make(chan error, 1)
	cl.wg.Go(func() { errs <- w.Work(ctx) })
	return cancel, errs
}

func units(set string, n int) (us []engine.Unit) {
	for i := range n {
		us = append(us, engine.Unit{Name: fmt.Sprintf("%s%02d", set, i), Spec: []byte(fmt.Sprint(i)), Size: int64(i)})
	}
	return us
}

// expect holds the values of units to their specs.
func (cl *cluster) expect(us []engine.Unit) {
	cl.t.Helper()
	for _, u := range us {
		r, err := cl.folder.Open(u.Name)
		if err != nil {
			cl.t.Error(err)
			continue
		}
		if b, err := io.ReadAll(r); err != nil || string(b) != string(u.Spec) {
			cl.t.Errorf("%s: %q, %v", u.Name, b, err)
		}
		r.Close()
	}
}

// TestCluster: workers do all units, those of a key on one worker, and end with the run.
func TestCluster(t *testing.T) {
	cl := start(t)
	var ended []<-chan error
	for i := range 3 {
		_, e := cl.join(cl.c.Local(), fmt.Sprint("w", i))
		ended = append(ended, e)
	}
	for cl.alive() < 3 {
		time.Sleep(time.Millisecond)
	}
	if err := cl.c.Do(t.Context(), units("a", 20)); err != nil {
		t.Fatal(err)
	}
	cl.expect(units("a", 20))
	keyed := func(set string) []engine.Unit {
		us := units(set, 12)
		for i := range us {
			us[i].Key = fmt.Sprint(i % 6)
		}
		return us
	}
	if err := cl.c.Do(t.Context(), keyed("b")); err != nil {
		t.Fatal(err)
	}
	cl.expect(keyed("b"))
	var of [3]map[any]bool
	for i := range 12 {
		who, _ := cl.done.Load(fmt.Sprintf("b%02d", i))
		k := slices.Index([]any{"w0", "w1", "w2"}, who)
		if of[k] == nil {
			of[k] = map[any]bool{}
		}
		of[k][i%6] = true
	}
	for i, keys := range of {
		if len(keys) != 2 {
			t.Logf("worker %d has done %d of 6 keys", i, len(keys)) // a slow machine's workers may have been taken for lost
		}
	}
	if err := cl.c.End(nil, false); err != nil {
		t.Error(err)
	}
	for _, e := range ended {
		if err := <-e; err != nil {
			t.Errorf("a worker ends with %v", err)
		}
	}
}

// TestLateUnit: no unit is lost whose answer comes too late to be waited for, as that of a server whose processors are at work. One that comes
// when the worker is at another goes to one that is idle; nobody does one twice.
func TestLateUnit(t *testing.T) {
	defer func(was time.Duration) { answerWait = was }(answerWait)
	answerWait = 0
	cl := start(t)
	cl.c.opt.AckWait = time.Hour
	var mu sync.Mutex
	begun := map[string]int{}
	free := make(chan struct{}, 1) // the unit without a key is done
	cl.before = func(ctx context.Context, name string, u engine.Unit) ([]byte, error) {
		mu.Lock()
		begun[u.Name]++
		mu.Unlock()
		if u.Key == "" {
			free <- struct{}{}
			return u.Spec, nil
		}
		select {
		case <-free:
		case <-ctx.Done():
		}
		return u.Spec, ctx.Err()
	}
	var ended []<-chan error
	for i := range 2 {
		_, e := cl.join(cl.c.Local(), fmt.Sprint("w", i))
		ended = append(ended, e)
	}
	for cl.alive() < 2 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range 50 {
		us := units(fmt.Sprint("late", i, "-"), 2)
		us[0].Key = "k"
		if err := cl.c.Do(ctx, us); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		for _, u := range us {
			if mu.Lock(); begun[u.Name] != 1 {
				t.Errorf("%s was begun %d times", u.Name, begun[u.Name])
			}
			mu.Unlock()
		}
	}
	if err := cl.c.End(nil, false); err != nil {
		t.Error(err)
	}
	for _, e := range ended {
		if err := <-e; err != nil {
			t.Error(err)
		}
	}
}

// TestJoin: a worker that comes while another has units of several keys takes its share, of those that have not been begun.
func TestJoin(t *testing.T) {
	cl := start(t)
	cl.joined(cl.c.Local())
}

// joined does units of keys by a worker w that is there and one that comes later, and ends the run.
func (cl *cluster) joined(w Worker) {
	t := cl.t
	t.Helper()
	begun, came := make(chan struct{}), make(chan struct{})
	var first sync.Once
	var taken atomic.Int32
	var mu sync.Mutex
	times := map[string]int{} // that a unit was begun
	cl.before = func(ctx context.Context, name string, u engine.Unit) ([]byte, error) {
		mu.Lock()
		times[u.Name]++
		mu.Unlock()
		if name == "w1" {
			if taken.Add(1) == 2 {
				close(came)
			}
			return u.Spec, nil
		}
		first.Do(func() { close(begun) })
		select {
		case <-came:
		case <-ctx.Done():
		case <-time.After(20 * time.Second):
			return nil, errors.New("the other has nothing to do")
		}
		return u.Spec, nil
	}
	_, ended := cl.join(w, "w0")
	for cl.alive() < 1 {
		time.Sleep(time.Millisecond)
	}
	us := units("a", 4)
	for i := range us {
		us[i].Key = us[i].Name
	}
	go func() {
		<-begun
		cl.join(w, "w1")
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := cl.c.Do(ctx, us); err != nil {
		t.Fatal(err)
	}
	cl.expect(us)
	if err := cl.c.End(nil, false); err != nil {
		t.Error(err)
	}
	cl.wg.Wait()
	if err := <-ended; err != nil {
		t.Errorf("a worker ends with %v", err)
	}
	for _, u := range us {
		if n := times[u.Name]; n != 1 {
			t.Errorf("%s was done %d times", u.Name, n)
		}
	}
}

func (cl *cluster) alive() (n int) {
	for _, w := range cl.c.Workers() {
		if w.Alive {
			n++
		}
	}
	return n
}

// TestLost: the units of a worker that is killed in the midst of one are done by another, its own queue's too.
func TestLost(t *testing.T) {
	cl := start(t)
	caught := make(chan struct{}, 16)
	cl.before = func(ctx context.Context, name string, u engine.Unit) ([]byte, error) {
		if name == "victim" {
			caught <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return u.Spec, nil
	}
	kill, ended := cl.join(cl.c.Local(), "victim")
	for cl.alive() < 1 {
		time.Sleep(time.Millisecond)
	}
	us := units("a", 6)
	us[0].Key, us[1].Key = "x", "y"
	done := make(chan error, 1)
	go func() { done <- cl.c.Do(t.Context(), us) }()
	<-caught
	kill()
	if err := <-ended; err == nil {
		t.Error("a killed worker ends without an error")
	}
	cl.join(cl.c.Local(), "heir")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	cl.expect(us)
	if err := cl.c.End(nil, false); err != nil {
		t.Error(err)
	}
	cl.wg.Wait()
}

// TestDifference: a worker that comes back late with another result ends the run, and both are named; one with the same
// result does not matter.
func TestDifference(t *testing.T) {
	for _, same := range []bool{true, false} {
		cl := start(t)
		caught, free := make(chan struct{}, 16), make(chan struct{})
		var mute atomic.Bool
		cl.before = func(ctx context.Context, name string, u engine.Unit) ([]byte, error) {
			if name != "zombie" || !strings.HasPrefix(u.Name, "a") {
				return u.Spec, nil
			}
			mute.Store(true)
			caught <- struct{}{}
			<-free
			mute.Store(false)
			if same {
				return u.Spec, nil
			}
			return []byte("other"), nil
		}
		w := cl.c.Local()
		w.mute = mute.Load
		cl.join(w, "zombie")
		us := units("a", 1)
		done := make(chan error, 1)
		go func() { done <- cl.c.Do(t.Context(), us) }()
		<-caught
		cl.join(cl.c.Local(), "other")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		close(free)
		var err error
		for n := 0; err == nil && (!same && n < 10000 || same && n < 3); n++ {
			if same {
				for { // until the zombie has reported
					ws := cl.c.Workers()
					if i := slices.IndexFunc(ws, func(s Standing) bool { return s.Name == "zombie" && s.Done > 0 }); i >= 0 {
						break
					}
					time.Sleep(time.Millisecond)
				}
			}
			err = cl.c.Do(t.Context(), units(fmt.Sprint("b", n), 2))
		}
		d, ok := errors.AsType[*engine.DifferenceError](err)
		if same && err != nil {
			t.Errorf("the same result: %v", err)
		}
		if !same && (!ok || d.Unit != "a00" || d.First != "other" || d.Second != "zombie") {
			t.Errorf("another result: %v", err)
		}
		cl.expect(us)
		if err := cl.c.End(err, false); err != nil {
			t.Error(err)
		}
		cl.wg.Wait()
	}
}

// TestTwice: a report whose answer was lost comes again, and is of one unit.
func TestTwice(t *testing.T) {
	cl := start(t)
	cl.c.greet(&hello{Worker: "w", Build: "build"})
	for range 2 {
		cl.c.onDone(&nats.Msg{Data: encode(report{Worker: "w", Unit: "a00", Done: 1})})
	}
	if w := cl.c.Workers(); len(w) != 1 || w[0].Done != 1 {
		t.Errorf("%+v", w)
	}
	if err := cl.c.End(nil, false); err != nil {
		t.Error(err)
	}
}

// TestLate: a worker that is at a unit while the run comes to its end leaves nothing of it in the folder.
func TestLate(t *testing.T) {
	cl := start(t)
	put := func(name string) error {
		_, err := cl.folder.Put(name, false, func(io.Writer) error { return nil })
		return err
	}
	caught := make(chan struct{}, 16)
	cl.before = func(ctx context.Context, _ string, u engine.Unit) ([]byte, error) {
		err := put(u.Name + "-part00")
		caught <- struct{}{}
		<-ctx.Done()
		return u.Spec, err // whose value is put too, as by one that does not look at ctx any more
	}
	_, ended := cl.join(cl.c.Local(), "late")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- cl.c.Do(ctx, units("a", 1)) }()
	<-caught
	cancel()
	<-done
	if err := put("a000"); err != nil { // another's
		t.Fatal(err)
	}
	if err := cl.c.End(nil, false); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("a worker ends with %v", err)
	}
	if names, err := cl.folder.Names(); err != nil || !slices.Equal(names, []string{"a000"}) {
		t.Errorf("left: %q, %v", names, err)
	}
}

// TestFailure: a unit that fails on and on ends the run with its error, and the workers are told.
func TestFailure(t *testing.T) {
	cl := start(t)
	var failures atomic.Int32
	cl.before = func(_ context.Context, _ string, u engine.Unit) ([]byte, error) {
		if u.Name == "a01" || u.Name == "a02" && failures.Add(1) < tries {
			return nil, errors.New("tensor x: element 3 is NaN")
		}
		return u.Spec, nil
	}
	_, ended := cl.join(cl.c.Local(), "w")
	if err := cl.c.Do(t.Context(), units("b", 1)); err != nil {
		t.Fatal(err)
	}
	err := cl.c.Do(t.Context(), units("a", 3))
	if err == nil || err.Error() != "a01 on w: tensor x: element 3 is NaN" {
		t.Errorf("%v", err)
	}
	if err := cl.c.End(err, false); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "element 3 is NaN") {
		t.Errorf("the worker ends with %v", err)
	}
}

// TestRestart: a coordinator that listens is killed and started again: its worker goes on, and what is done stays done.
func TestRestart(t *testing.T) {
	cl := start(t)
	if err := cl.c.End(nil, true); err != nil {
		t.Fatal(err)
	}
	cl.coordinate(Options{Listen: "127.0.0.1:0"})
	address := cl.c.Address()
	_, ended := cl.join(Worker{Connection: Connection{URL: address}, Run: cl.folder.ID(), Build: "build"}, "w")
	us := units("a", 4)
	if err := cl.c.Do(t.Context(), us[:3]); err != nil {
		t.Fatal(err)
	}
	if err := cl.c.End(nil, true); err != nil { // as an interrupt ends it
		t.Fatal(err)
	}
	cl.done.Clear()
	cl.coordinate(Options{Listen: strings.TrimPrefix(address, "nats://")})
	if err := cl.c.Do(t.Context(), us); err != nil {
		t.Fatal(err)
	}
	cl.expect(us)
	cl.done.Range(func(name, _ any) bool {
		if name != "a03" {
			t.Errorf("%v is done again", name)
		}
		return true
	})
	if err := cl.c.End(nil, false); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the worker ends with %v", err)
	}
}

// TestRefused: workers of another build are refused, and listening to other machines takes a token.
func TestRefused(t *testing.T) {
	cl := start(t)
	w := cl.c.Local()
	w.Build = "other"
	_, ended := cl.join(w, "w")
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "llmq build, this one is other") {
		t.Errorf("another build: %v", err)
	}
	w = cl.c.Local()
	w.Ready = func(tier string, _ []byte) error { return errors.New("no " + tier) }
	_, ended = cl.join(w, "w")
	if err := <-ended; err == nil || err.Error() != "no tier" {
		t.Errorf("another processor: %v", err)
	}
	if err := cl.c.End(nil, false); err != nil {
		t.Error(err)
	}
	for _, listen := range []string{":0", "0.0.0.0:0", "192.0.2.1:0"} {
		if _, err := serve(listen, "", t.TempDir()); err == nil || !strings.Contains(err.Error(), "give a secret") {
			t.Errorf("%s without a token: %v", listen, err)
		}
	}
	cl.coordinate(Options{Listen: "127.0.0.1:0", Connection: Connection{Token: "secret"}})
	for token, want := range map[string]string{"secret": "", "": "Authorization", "other": "Authorization"} {
		c := Connection{URL: cl.c.Address(), Token: token}
		nc, err := c.connect(nil, "x", func(error) {})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(want))) {
			t.Errorf("token %q: %v", token, err)
		}
		if err == nil {
			nc.Close()
		}
	}
	if err := cl.c.End(nil, false); err != nil {
		t.Error(err)
	}
}

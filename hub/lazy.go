package hub

import (
	"context"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/gofrs/flock"

	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/internal/mmap"
)

// smallTensor is the size up to which a tensor is fetched by itself: norms, biases, routers. A larger one, or one of more than
// a 256th of its shard, brings all that lies before it in the file.
const smallTensor = 4 << 20

// mostSmall is how much of a shard is fetched tensor by tensor: experts of mixtures are small too, and many. It is at most half
// of a shard, so that one of small tensors alone is read in order too, and its digest is checked.
const mostSmall = 64 << 20

// Lazy is a model of the hub in a folder whose weights come when they are needed and go when they are spent (mmap.Map.Drop). A shard's file
// has its full length from the beginning and takes the room of what is there (a sparse file). Its bytes come in their order, as far as they are
// needed, but for small tensors, and are summed into its digest on the way: only in the end is it known whether all was what it should be (Check). What has come and gone is written
// down beside it, so that another process goes on with the same folder.
//
//	FOLDER/models--ORG--NAME/snapshots/COMMIT/SHARD           the bytes that are there, and holes
//	FOLDER/models--ORG--NAME/snapshots/COMMIT/SHARD.have      a line for each time that bytes came or went
type Lazy struct {
	c   *Client
	l   *Listing
	ctx context.Context
	dir string

	weights []File
	held    *flock.Flock
	mu      sync.Mutex
	shards  map[string]*shard // by path; nil where the cache has the file
	again   bool              // it was told that bytes come a second time
}

// shard is a file of weights. It is a mmap.Filler.
type shard struct {
	z       *Lazy
	f       File
	path    string
	file    *os.File
	journal *os.File
	m       *mmap.Map
	first   int64 // bytes of the header
	have    spans // that are there
	alone   spans // that have come by themselves, before the rest
	spent   spans // that nobody needs any more
	checked int64 // bytes from the first on that were there at one time, and are in digest
	reached int64 // bytes from the first on behind which none have come
	digest  hash.Hash
	bad     error // why nothing can be said of the digest any more, or that it is wrong
	told    bool  // a user was told that it is fetched
}

// A WholeError says that weights do not come in parts: Snapshot may have them as a whole.
type WholeError struct{ error }

func (e *WholeError) Unwrap() error { return e.error }

// A DamagedError says that what has come, and was used, is not what the hub has: nothing that was made of it is worth anything.
type DamagedError struct{ error }

// Lazy makes folder hold a model whose weights come when they are needed. ctx ends what is fetched then. Only Linux has files and maps
// that allow it.
func (c *Client) Lazy(ctx context.Context, ref Ref, folder string) (*Lazy, error) {
	if c.Offline {
		return nil, &WholeError{fmt.Errorf("hub: %s: HF_HUB_OFFLINE is set: nothing is asked for", ref)}
	}
	l, err := c.List(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := c.noteRevision(l); err != nil {
		return nil, err
	}
	cached := c.tree(l)
	beside, err := l.beside()
	if err != nil {
		return nil, err
	}
	if err := cached.ensure(ctx, beside); err != nil {
		return nil, err
	}
	weights, err := cached.weights()
	if err != nil {
		return nil, err
	}
	z := &Lazy{c: c, l: l, ctx: ctx, shards: map[string]*shard{}, dir: filepath.Join(folder, ref.folder(), "snapshots", l.Commit)}
	if err := os.MkdirAll(z.dir, 0o755); err != nil {
		return nil, fmt.Errorf("hub: %w", err)
	}
	z.held = flock.New(filepath.Join(z.dir, ".lock"))
	if ok, err := z.held.TryLock(); err != nil {
		return nil, fmt.Errorf("hub: %w", err)
	} else if !ok {
		return nil, fmt.Errorf("hub: %s: another process works in this folder", z.dir)
	}
	if err := z.fill(cached, beside, weights); err != nil {
		z.Close()
		return nil, err
	}
	return z, nil
}

// fill makes the folder: links to what the cache has, and the other files of weights with holes.
func (z *Lazy) fill(cached *tree, beside, weights []File) error {
	for _, f := range beside {
		if err := z.link(cached, f); err != nil {
			return err
		}
	}
	for _, f := range weights {
		if !strings.HasSuffix(f.Path, ".safetensors") {
			return &WholeError{fmt.Errorf("hub: %s: %s is no safetensors file, of which alone parts can be fetched", z.l.Ref, f.Path)}
		}
		z.weights = append(z.weights, f)
		there, err := cached.has(f, cached.place(f))
		if err == nil && there {
			err = z.link(cached, f)
		} else if err == nil {
			err = z.open(f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// link shows a file of the cache.
func (z *Lazy) link(cached *tree, f File) error {
	name := filepath.Join(z.dir, filepath.FromSlash(f.Path))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("hub: %w", err)
	}
	if err := os.Symlink(filepath.Join(cached.dir, filepath.FromSlash(f.Path)), name); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	return nil
}

// Taken is how much of the disk the weights take that are there.
func (z *Lazy) Taken() int64 {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.taken()
}

func (z *Lazy) taken() (bytes int64) {
	for _, s := range z.shards {
		bytes += s.have.bytes()
	}
	return bytes
}

// Dir is the folder to open as a checkpoint, with Open for its files of weights.
func (z *Lazy) Dir() string { return z.dir }

// Identity is the digests of the weights.
func (z *Lazy) Identity() string {
	var parts []string
	for _, f := range z.weights {
		parts = append(parts, f.Path+" "+string(f.Digest))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// open readies a shard: its file, what is known to be there, its header.
func (z *Lazy) open(f File) (err error) {
	s := &shard{z: z, f: f, digest: f.summer(), path: filepath.Join(z.dir, filepath.FromSlash(f.Path))}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	z.shards[s.path] = s
	if _, err := os.Readlink(s.path); err == nil { // of when the cache had it: what it leads to is not ours to write to
		if err := os.Remove(s.path); err != nil {
			return fmt.Errorf("hub: %w", err)
		}
		if err := os.Remove(s.path + ".have"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("hub: %w", err)
		}
	}
	if s.file, err = os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	if s.journal, err = os.OpenFile(s.path+".have", os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	if err := s.replay(); err != nil {
		return err
	}
	if err := s.file.Truncate(f.Bytes); err != nil {
		return fmt.Errorf("hub: %s: %w", s.path, err)
	}
	for _, a := range (spans{{0, f.Bytes}}).less(s.have) {
		// What came, or was to go, as a process was killed. Where this fails it takes room, no more.
		_ = punch(s.file, a.lo, a.hi)
	}
	if f.Bytes < 8 {
		return fmt.Errorf("hub: %s: %s: %d bytes are too few for a safetensors file", z.l.Ref, f.Path, f.Bytes)
	}
	if err := s.fetch(spans{{0, 8}}); err != nil {
		return err
	}
	var length [8]byte
	if _, err := s.file.ReadAt(length[:], 0); err != nil {
		return fmt.Errorf("hub: %s: %w", s.path, err)
	}
	const most = 100_000_000 // the format's own limit
	n := binary.LittleEndian.Uint64(length[:])
	if n > most || int64(n) > f.Bytes-8 {
		return fmt.Errorf("hub: %s: %s: its header's length is %d, of %d bytes", z.l.Ref, f.Path, n, f.Bytes)
	}
	s.first = 8 + int64(n)
	return s.fetch(spans{{8, s.first}})
}

// Open maps a shard, for a reader of the folder.
func (z *Lazy) Open(path string) (*mmap.Map, error) {
	s := z.shards[path]
	if s == nil {
		return mmap.Open(path)
	}
	m, err := mmap.OpenLazy(path, s.first, s)
	if err != nil {
		return nil, err
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	s.m = m
	return m, nil
}

// Remove takes the folder away. What is open stays as it is, and takes its room until Close.
func (z *Lazy) Remove() error {
	repository := filepath.Dir(filepath.Dir(z.dir))
	if err := os.RemoveAll(repository); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	os.Remove(filepath.Dir(repository)) // if nothing else is in it
	return nil
}

// Close closes the files. Maps are their readers' to close.
func (z *Lazy) Close() error {
	var errs []error
	for _, s := range z.shards {
		for _, f := range []*os.File{s.file, s.journal} {
			if f != nil {
				errs = append(errs, f.Close())
			}
		}
	}
	return errors.Join(append(errs, z.held.Close())...)
}

// Fill has bytes lo to hi be there.
func (s *shard) Fill(lo, hi int64) error {
	z := s.z
	z.mu.Lock()
	defer z.mu.Unlock()
	if s.bad != nil {
		return s.bad
	}
	s.spent = s.spent.without(lo, hi)
	small := s.small(lo, hi)
	if small {
		s.alone = s.alone.with(lo, hi)
	}
	missing := spans{{lo, hi}}.less(s.have)
	if again := missing.less(spans{{s.checked, s.f.Bytes}}); len(again) > 0 {
		if !z.again {
			z.again = true
			z.c.notify("%s: a tensor is needed that had gone already: it is fetched again", z.l.Ref)
		}
		if err := s.fetch(again); err != nil {
			return err
		}
		if err := s.file.Sync(); err != nil { // as all is that was checked
			return fmt.Errorf("hub: %s: %w", s.path, err)
		}
		for _, a := range again { // not before: after a power cut what was checked is taken for what is on the disk
			if err := s.note("have %d %d", a.lo, a.hi); err != nil {
				return err
			}
		}
	}
	switch {
	case small:
		return s.fetch(missing)
	case hi <= s.checked:
		return nil
	}
	return s.through(hi)
}

// through has all bytes come from where the digest has come to, until hi. They are needed sooner or later, and the digest can be computed in the
// file's order alone; so what is spent may go before the rest is there. In the end it is known whether all were what they should be.
func (s *shard) through(hi int64) error {
	z := s.z
	missing := spans{{s.checked, hi}}.less(s.have)
	if free, known := atomicfile.Free(z.dir); known && uint64(missing.bytes()) > free {
		return fmt.Errorf("hub: %s: %s: %d bytes are to be fetched, %s has %d bytes free", z.l.Ref, s.f.Path, missing.bytes(), z.dir, free)
	}
	if !s.told {
		s.told = true
		z.c.notify("fetching %s, %d bytes", s.f.Path, s.f.Bytes-max(s.checked, s.have.bytes()))
	}
	if err := s.fetch(missing); err != nil {
		return err
	}
	if _, err := copyAll(z.ctx, s.digest, io.NewSectionReader(s.file, s.checked, hi-s.checked)); err != nil {
		s.bad = fmt.Errorf("hub: %s: %w", s.path, err) // the digest may have some of them
		return s.bad
	}
	s.checked = hi
	if got := sum(s.digest); hi == s.f.Bytes && got != s.f.Digest {
		err := fmt.Errorf("hub: %s: %s: what has come has digest %s, not %s", z.l.Ref, s.f.Path, got, s.f.Digest)
		s.bad = &DamagedError{errors.Join(err, s.condemn())}
		return s.bad
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("hub: %s: %w", s.path, err)
	}
	state, err := s.digest.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	if err := s.note("checked %d %x", hi, state); err != nil {
		return err
	}
	return s.leave()
}

// Check has the rest come of every file of which more than the header was read, and says whether all of it was what it should be.
func (z *Lazy) Check() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, s := range z.shards {
		if s == nil {
			continue
		}
		if s.bad != nil {
			return s.bad
		}
		for s.reached > s.first && s.checked < s.f.Bytes {
			const step = 64 << 20
			hi := min(s.checked+step, s.f.Bytes)
			for _, a := range (spans{{s.checked, hi}}).less(s.have) {
				s.spent = s.spent.with(a.lo, a.hi) // nobody reads it: it goes at once
			}
			if err := s.through(hi); err != nil {
				return err
			}
		}
	}
	return nil
}

// small says whether bytes lo to hi are fetched by themselves: see smallTensor.
func (s *shard) small(lo, hi int64) bool {
	c := s.z.c
	return hi-lo <= c.small && (c.Glance || hi-lo <= s.f.Bytes/256 && s.alone.with(lo, hi).bytes() <= min(c.mostSmall, s.f.Bytes/2))
}

// Drop gives up bytes.
func (s *shard) Drop(parts [][2]int64) error {
	s.z.mu.Lock()
	defer s.z.mu.Unlock()
	for _, p := range parts {
		s.spent = s.spent.with(p[0], p[1])
	}
	return s.leave()
}

// There says that bytes lo to hi have come, with all before them.
func (s *shard) There(lo, hi int64) bool {
	s.z.mu.Lock()
	defer s.z.mu.Unlock()
	return hi <= s.checked
}

// Gone says that bytes lo to hi have come, and that some of them have gone since.
func (s *shard) Gone(lo, hi int64) bool {
	s.z.mu.Lock()
	defer s.z.mu.Unlock()
	return hi <= s.checked && len(spans{{lo, hi}}.less(s.have)) > 0
}

// leave gives up the bytes that are spent and that the digest has come past.
func (s *shard) leave() error {
	gone := s.spent.less(s.spent.less(s.have)).less(spans{{s.checked, s.f.Bytes}})
	if len(gone) == 0 {
		return nil
	}
	// First what is remembered, on the disk, then what is: a process that ends in between, or a machine, has bytes that it does not
	// know of, and no holes.
	for _, a := range gone {
		if err := s.note("gone %d %d", a.lo, a.hi); err != nil {
			return err
		}
	}
	if err := s.journal.Sync(); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	s.have = s.have.less(gone)
	for _, a := range (spans{{0, s.checked}}).less(s.have) { // holes: with what had gone beside it, as blocks of the disk lie in both
		if !a.meets(gone) {
			continue
		}
		if s.m != nil && s.m.Data != nil {
			if err := s.m.Forbid(a.lo, a.hi); err != nil {
				return fmt.Errorf("hub: %s: %w", s.path, err)
			}
		}
		if err := punch(s.file, a.lo, a.hi); err != nil {
			return fmt.Errorf("hub: %s: cannot give up bytes %d to %d: %w", s.path, a.lo, a.hi, err)
		}
	}
	return nil
}

// condemn gives up all, for good: what was made of it is worth nothing.
func (s *shard) condemn() error {
	s.have = nil
	if err := s.note("damaged"); err != nil {
		return err
	}
	return errors.Join(s.journal.Sync(), punch(s.file, 0, s.f.Bytes))
}

func (s *shard) damaged() error {
	return fmt.Errorf("hub: %s is of a damaged download: remove this folder, and what was made of it (--work), and start again", s.z.dir)
}

// note adds a line to what is known, or nothing: the next one would go on in the middle of it.
func (s *shard) note(format string, args ...any) error {
	n, err := fmt.Fprintf(s.journal, format+"\n", args...)
	if err == nil {
		return nil
	}
	if info, e := s.journal.Stat(); n > 0 && e == nil {
		err = errors.Join(err, s.journal.Truncate(info.Size()-int64(n)))
	}
	return fmt.Errorf("hub: %w", err)
}

// replay reads what is known. A last line that a killed process has left unfinished counts for nothing.
func (s *shard) replay() error {
	b, err := io.ReadAll(s.journal)
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	end := strings.LastIndexByte(string(b), '\n') + 1
	if err := s.journal.Truncate(int64(end)); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	started := ""
	for line := range strings.Lines(string(b[:end])) {
		var lo, hi int64
		var state []byte
		switch {
		case scan(line, "started %s\n", &started):
		case line == "damaged\n":
			return s.damaged()
		case scan(line, "checked %d %x\n", &hi, &state) && hi <= s.f.Bytes:
			if err := s.digest.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
				return fmt.Errorf("hub: %s.have: %w", s.path, err)
			}
			s.checked = hi
		case scan(line, "have %d %d\n", &lo, &hi) && lo < hi && hi <= s.f.Bytes:
			s.have = s.have.with(lo, hi)
			s.reached = max(s.reached, hi)
		case scan(line, "gone %d %d\n", &lo, &hi):
			s.have = s.have.without(lo, hi)
		default:
			return fmt.Errorf("hub: %s.have: %.80q is no line of it: remove the folder to start over", s.path, line)
		}
	}
	// What had come last before a power cut may not be on the disk: it was so when it was checked.
	if now := systemStart(); started != now {
		s.have = s.have.less(spans{{s.checked, s.f.Bytes}})
		return s.note("started %s", now)
	}
	return nil
}

func scan(line, format string, args ...any) bool {
	n, err := fmt.Sscanf(line, format, args...)
	return err == nil && n == len(args)
}

// fetch brings those of want that are not there.
func (s *shard) fetch(want spans) error {
	z := s.z
	missing := want.less(s.have)
	if len(missing) == 0 {
		return nil
	}
	r := &retry{c: z.c, what: z.l.Repo + ": " + s.f.Path}
	for _, a := range missing {
		for a.lo < a.hi {
			n, err := s.once(a, r)
			a.lo += n
			var disk *writeError
			var final *finalError
			switch {
			case errors.As(err, &final):
				return final.error
			case errors.As(err, &disk):
				return fmt.Errorf("hub: %s: %w", s.path, err)
			case n > 0:
				r.attempts = 0
			}
			if err != nil {
				if err := r.wait(z.ctx, plainError(err), 0); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// once makes one request for bytes, and returns how many have come.
func (s *shard) once(a span, r *retry) (n int64, err error) {
	z := s.z
	ctx, cancel := context.WithCancelCause(z.ctx)
	defer cancel(nil)
	resp, err := z.c.get(ctx, z.l.Ref, z.c.address(z.l, s.f), a, r)
	if err != nil {
		return 0, &finalError{err}
	}
	defer resp.Body.Close()
	whole := a == span{0, s.f.Bytes}
	if resp.StatusCode != http.StatusPartialContent && !whole {
		return 0, &finalError{&WholeError{fmt.Errorf("hub: %s: %s does not send parts of a file", r.what, hostOf(resp))}}
	}
	if err := checkRange(resp, a.lo, s.f.Bytes); err != nil {
		return 0, &finalError{fmt.Errorf("hub: %s: %w", r.what, err)}
	}
	idle := fmt.Errorf("%s has sent nothing for %s", hostOf(resp), maxIdle)
	body, stop := withoutIdling(resp.Body, func() { cancel(idle) })
	defer stop()
	w := &landing{s, a}
	_, err = copyAll(ctx, w, body)
	n = w.lo - a.lo
	if context.Cause(ctx) == idle {
		err = idle
	} else if err == nil && w.lo < a.hi {
		err = fmt.Errorf("%s has ended the connection after %d of %d bytes", hostOf(resp), n, a.hi-a.lo)
	}
	return n, err
}

// landing is where bytes of a shard are to go.
type landing struct {
	s *shard
	span
}

func (w *landing) Write(p []byte) (int, error) {
	if int64(len(p)) > w.hi-w.lo {
		return 0, errors.New("more bytes arrive than were asked for")
	}
	n, err := w.s.file.WriteAt(p, w.lo)
	if err != nil {
		return n, err
	}
	hi := w.lo + int64(n)
	if w.lo >= w.s.checked { // see Fill of what comes again
		if err := w.s.note("have %d %d", w.lo, hi); err != nil {
			return n, err
		}
	}
	w.s.have = w.s.have.with(w.lo, hi)
	w.s.reached = max(w.s.reached, hi)
	w.lo = hi
	return n, nil
}

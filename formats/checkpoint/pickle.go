package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"
)

// The pickles of state dicts, as torch.save writes them: protocol 2, some programs' up to 5. The machine below knows the
// opcodes that occur in them, and of Python's objects those that a state dict is made of; nothing is ever called that a
// pickle names. Memory is bounded by the pickle's length, as each opcode makes one object of what is on the stack. (github.com/nlpodyssey/gopickle reads storages into memory and panics at some old files; tensors here
// are views of the file.)

// Values of a pickle: nil, bool, int64, float64, string, pickleTuple, *pickleList, *pickleDict, global, *storage, *rebuilt.
type (
	pickleTuple []any
	pickleList  struct{ items []any }
	pickleDict  struct {
		keys   []any
		values []any
	}
	// global names what Python would import: "torch BFloat16Storage".
	global string
	// storage is a torch storage, which a file beside the pickle holds.
	storage struct {
		kind     global
		key      string
		elements int64
	}
	// rebuilt is a tensor: a view of a storage, all in elements.
	rebuilt struct {
		storage       *storage
		offset        int64
		shape, stride []int64
	}
	mark struct{}
)

// unpickler is the machine. The first error ends it.
type unpickler struct {
	b     []byte
	at    int
	stack []any
	memo  map[uint32]any
}

var errShortPickle = errors.New("it ends before its STOP")

// unpickle runs a pickle and returns what it makes.
func unpickle(b []byte) (v any, err error) {
	u := unpickler{b: b, memo: make(map[uint32]any)}
	for {
		op, err := u.bytes(1)
		if err != nil {
			return nil, err
		}
		if op[0] == '.' {
			return u.pop()
		}
		at := u.at - 1
		if err := u.step(op[0]); err != nil {
			return nil, fmt.Errorf("opcode %#02x at byte %d: %w", op[0], at, err)
		}
	}
}

func (u *unpickler) bytes(n uint64) ([]byte, error) {
	if n > uint64(len(u.b)-u.at) {
		return nil, errShortPickle
	}
	b := u.b[u.at : u.at+int(n)]
	u.at += int(n)
	return b, nil
}

// number reads a little-endian natural of some bytes.
func (u *unpickler) number(size uint64) (uint64, error) {
	b, err := u.bytes(size)
	var n [8]byte
	copy(n[:], b)
	return binary.LittleEndian.Uint64(n[:]), err
}

// counted reads bytes that follow their length.
func (u *unpickler) counted(size uint64) ([]byte, error) {
	n, err := u.number(size)
	if err != nil {
		return nil, err
	}
	return u.bytes(n)
}

// line reads up to a newline.
func (u *unpickler) line() (string, error) {
	s, _, ok := strings.Cut(string(u.b[u.at:min(len(u.b), u.at+1024)]), "\n")
	if !ok {
		return "", errors.New("a line of more than 1024 bytes")
	}
	u.at += len(s) + 1
	return s, nil
}

func (u *unpickler) push(v any) { u.stack = append(u.stack, v) }

func (u *unpickler) pop() (any, error) {
	if len(u.stack) == 0 {
		return nil, errors.New("the stack is empty")
	}
	v := u.stack[len(u.stack)-1]
	u.stack = u.stack[:len(u.stack)-1]
	if _, is := v.(mark); is {
		return nil, errors.New("a mark in place of a value")
	}
	return v, nil
}

// popMark takes what lies above the last mark, and the mark.
func (u *unpickler) popMark() ([]any, error) {
	for i := len(u.stack) - 1; i >= 0; i-- {
		if _, is := u.stack[i].(mark); is {
			items := append([]any(nil), u.stack[i+1:]...)
			u.stack = u.stack[:i]
			return items, nil
		}
	}
	return nil, errors.New("no mark on the stack")
}

func (u *unpickler) top() (any, error) {
	v, err := u.pop()
	if err == nil {
		u.push(v)
	}
	return v, err
}

// step runs an opcode.
func (u *unpickler) step(op byte) error {
	switch op {
	case 0x80: // PROTO
		n, err := u.number(1)
		if err == nil && n > 5 {
			err = fmt.Errorf("protocol %d", n)
		}
		return err
	case 0x95: // FRAME
		_, err := u.bytes(8)
		return err
	case '(':
		u.push(mark{})
	case 'N':
		u.push(nil)
	case 0x88:
		u.push(true)
	case 0x89:
		u.push(false)
	case ')':
		u.push(pickleTuple(nil))
	case ']':
		u.push(&pickleList{})
	case '}':
		u.push(&pickleDict{})
	case 'K', 'M', 'J': // BININT1, BININT2, BININT
		n, err := u.number(map[byte]uint64{'K': 1, 'M': 2, 'J': 4}[op])
		v := int64(n)
		if op == 'J' {
			v = int64(int32(n))
		}
		u.push(v)
		return err
	case 0x8a: // LONG1
		b, err := u.counted(1)
		if err != nil {
			return err
		}
		v, err := long(b)
		u.push(v)
		return err
	case 'G': // BINFLOAT, big-endian
		b, err := u.bytes(8)
		if err == nil {
			u.push(math.Float64frombits(binary.BigEndian.Uint64(b)))
		}
		return err
	case 'X', 0x8c, 0x8d: // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
		b, err := u.counted(map[byte]uint64{'X': 4, 0x8c: 1, 0x8d: 8}[op])
		u.push(string(b))
		return err
	case 'c': // GLOBAL
		module, err := u.line()
		if err != nil {
			return err
		}
		name, err := u.line()
		u.push(global(module + " " + name))
		return err
	case 0x93: // STACK_GLOBAL
		name, err := u.pop()
		if err != nil {
			return err
		}
		module, err := u.pop()
		m, ok1 := module.(string)
		n, ok2 := name.(string)
		if err == nil && !(ok1 && ok2) {
			err = errors.New("a name that is no string")
		}
		u.push(global(m + " " + n))
		return err
	case 'q', 'r', 0x94: // BINPUT, LONG_BINPUT, MEMOIZE
		n, err := uint64(len(u.memo)), error(nil)
		if op != 0x94 {
			n, err = u.number(map[byte]uint64{'q': 1, 'r': 4}[op])
		}
		if err != nil {
			return err
		}
		v, err := u.top()
		u.memo[uint32(n)] = v
		return err
	case 'h', 'j': // BINGET, LONG_BINGET
		n, err := u.number(map[byte]uint64{'h': 1, 'j': 4}[op])
		if err != nil {
			return err
		}
		v, ok := u.memo[uint32(n)]
		if !ok {
			return fmt.Errorf("no memo %d", n)
		}
		u.push(v)
	case 't': // TUPLE
		items, err := u.popMark()
		u.push(pickleTuple(items))
		return err
	case 0x85, 0x86, 0x87: // TUPLE1 to TUPLE3
		items := make(pickleTuple, op-0x84)
		for i := len(items) - 1; i >= 0; i-- {
			v, err := u.pop()
			if err != nil {
				return err
			}
			items[i] = v
		}
		u.push(items)
	case 'a', 'e': // APPEND, APPENDS
		return u.appendItems(op == 'e')
	case 's', 'u': // SETITEM, SETITEMS
		return u.setItems(op == 'u')
	case 'b': // BUILD: an OrderedDict's attributes, such as _metadata
		if _, err := u.pop(); err != nil {
			return err
		}
		v, err := u.top()
		if _, ok := v.(*pickleDict); err == nil && !ok {
			return fmt.Errorf("attributes of %s", describe(v))
		}
		return err
	case 'R': // REDUCE
		return u.reduce()
	case 'Q': // BINPERSID
		v, err := u.pop()
		if err != nil {
			return err
		}
		s, err := newStorage(v)
		u.push(s)
		return err
	default:
		return errors.New("it does not occur in state dicts")
	}
	return nil
}

func (u *unpickler) appendItems(many bool) error {
	items, err := u.items(many, 1)
	if err != nil {
		return err
	}
	v, err := u.top()
	if err != nil {
		return err
	}
	list, ok := v.(*pickleList)
	if !ok {
		return fmt.Errorf("items of %s", describe(v))
	}
	list.items = append(list.items, items...)
	return nil
}

func (u *unpickler) setItems(many bool) error {
	items, err := u.items(many, 2)
	if err != nil {
		return err
	}
	v, err := u.top()
	if err != nil {
		return err
	}
	dict, ok := v.(*pickleDict)
	if !ok || len(items)%2 != 0 {
		return fmt.Errorf("%d keys and values of %s", len(items), describe(v))
	}
	for i := 0; i < len(items); i += 2 {
		dict.keys = append(dict.keys, items[i])
		dict.values = append(dict.values, items[i+1])
	}
	return nil
}

// items takes n values, or all above the mark.
func (u *unpickler) items(many bool, n int) ([]any, error) {
	if many {
		return u.popMark()
	}
	items := make([]any, n)
	for i := n - 1; i >= 0; i-- {
		v, err := u.pop()
		if err != nil {
			return nil, err
		}
		items[i] = v
	}
	return items, nil
}

// reduce stands for a call, of which three occur.
func (u *unpickler) reduce() error {
	v, err := u.pop()
	if err != nil {
		return err
	}
	f, err := u.pop()
	if err != nil {
		return err
	}
	args, ok := v.(pickleTuple)
	name, ok2 := f.(global)
	if !ok || !ok2 {
		return fmt.Errorf("a call of %s with %s", describe(f), describe(v))
	}
	switch name {
	case "collections OrderedDict":
		if len(args) > 0 {
			return errors.New("an OrderedDict with arguments")
		}
		u.push(&pickleDict{})
		return nil
	case "torch._utils _rebuild_tensor_v2":
		t, err := newRebuilt(args)
		u.push(t)
		return err
	case "torch._utils _rebuild_parameter":
		if len(args) < 1 {
			return errors.New("a parameter without a tensor")
		}
		if _, ok := args[0].(*rebuilt); !ok {
			return fmt.Errorf("a parameter of %s", describe(args[0]))
		}
		u.push(args[0])
		return nil
	}
	return fmt.Errorf("a call of %q, which is not executed", string(name))
}

// long is a little-endian integer in two's complement.
func long(b []byte) (int64, error) {
	be := make([]byte, len(b))
	for i, v := range b {
		be[len(b)-1-i] = v
	}
	n := new(big.Int).SetBytes(be)
	if len(b) > 0 && b[len(b)-1]&0x80 != 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(b))))
	}
	if !n.IsInt64() {
		return 0, fmt.Errorf("an integer of %d bytes", len(b))
	}
	return n.Int64(), nil
}

// newStorage reads a persistent id: ("storage", type, key, place, elements).
func newStorage(v any) (*storage, error) {
	id, _ := v.(pickleTuple)
	if len(id) == 5 && id[0] == "storage" {
		kind, ok1 := id[1].(global)
		key, ok2 := id[2].(string)
		n, ok3 := id[4].(int64)
		if ok1 && ok2 && ok3 {
			return &storage{kind, key, n}, nil
		}
	}
	return nil, fmt.Errorf("a persistent id that is no storage: %s", describe(v))
}

// newRebuilt reads the arguments of _rebuild_tensor_v2: storage, offset, size, stride, and others that do not matter.
func newRebuilt(args pickleTuple) (*rebuilt, error) {
	if len(args) < 4 {
		return nil, fmt.Errorf("a tensor of %d arguments", len(args))
	}
	s, ok1 := args[0].(*storage)
	offset, ok2 := args[1].(int64)
	shape, ok3 := integers(args[2])
	stride, ok4 := integers(args[3])
	if !ok1 || !ok2 || !ok3 || !ok4 || len(shape) != len(stride) || len(shape) > 16 {
		return nil, fmt.Errorf("a tensor of %s", describe(args))
	}
	return &rebuilt{s, offset, shape, stride}, nil
}

func integers(v any) ([]int64, bool) {
	t, ok := v.(pickleTuple)
	if !ok {
		return nil, false
	}
	list := make([]int64, len(t))
	for i := range t {
		if list[i], ok = t[i].(int64); !ok {
			return nil, false
		}
	}
	return list, true
}

// describe names a value in a few words, whatever it holds.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool, int64, float64:
		return fmt.Sprint(v)
	case string:
		return fmt.Sprintf("%.60q", v)
	case global:
		return fmt.Sprintf("%.120q", string(v))
	case pickleTuple:
		return fmt.Sprintf("a tuple of %d", len(v))
	case *pickleList:
		return fmt.Sprintf("a list of %d", len(v.items))
	case *pickleDict:
		return fmt.Sprintf("a dict of %d", len(v.keys))
	case *rebuilt:
		return "a tensor"
	case *storage:
		return "a storage"
	}
	return "a mark"
}

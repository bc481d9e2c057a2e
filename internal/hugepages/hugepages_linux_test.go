package hugepages

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// TestMake asks the kernel what it was asked for: the flag hg of both ends of a large slice.
func TestMake(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		t.Skip("this kernel has no huge pages")
	}
	for _, n := range []int{0, 1, least/4 - 1, least / 4, 5_000_000} {
		s := Make[float32](n)
		if len(s) != n || slices.ContainsFunc(s, func(f float32) bool { return f != 0 }) {
			t.Fatalf("%d elements are not so many zeros", n)
		}
		if 4*n < least {
			continue
		}
		if !flagged(t, uintptr(unsafe.Pointer(&s[0]))) || !flagged(t, uintptr(unsafe.Pointer(&s[n-1]))) {
			t.Errorf("%d elements: no huge pages", n)
		}
	}
}

// flagged says whether huge pages were asked for at an address.
func flagged(t *testing.T, address uintptr) bool {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	here := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var from, to uintptr
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x ", &from, &to); n == 2 {
			here = from <= address && address < to
		}
		if flags, ok := strings.CutPrefix(lines.Text(), "VmFlags:"); ok && here {
			return slices.Contains(strings.Fields(flags), "hg")
		}
	}
	return false
}

package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// harness shows the page in a frame of each width, as a window of a phone's width cannot be made, and tells the server
// what it measures there: how far the content sticks out, and the smallest text.
const harness = `<!DOCTYPE html><meta charset="utf-8"><title>harness</title><body><script>
const measure = async (path, width) => {
	const frame = document.createElement("iframe");
	frame.style.cssText = "border:0;width:" + width + "px;height:800px";
	frame.src = path;
	document.body.replaceChildren(frame);
	await new Promise(done => frame.onload = done);
	const doc = frame.contentDocument, root = doc.documentElement, wide = [];
	doc.querySelectorAll("details").forEach(d => d.open = true);
	let smallest = Infinity;
	const texts = doc.createTreeWalker(doc.body, NodeFilter.SHOW_TEXT);
	while (texts.nextNode()) {
		const e = texts.currentNode.parentElement;
		if (!texts.currentNode.data.trim() || !e.getClientRects().length) continue;
		const svg = e.closest("svg");
		const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
		smallest = Math.min(smallest, parseFloat(frame.contentWindow.getComputedStyle(e).fontSize) * scale);
	}
	for (const e of doc.body.querySelectorAll("*"))
		if (!e.closest(".scroll") && e.getBoundingClientRect().right > width + 0.5) wide.push(e.outerHTML.slice(0, 80));
	return {Width: width, Client: root.clientWidth, Scroll: root.scrollWidth, Height: root.scrollHeight, Smallest: smallest,
		Wide: wide.slice(0, 5), Loaded: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name), Cells: doc.querySelectorAll(".heat td").length};
};
(async () => {
	const results = [];
	for (const width of [390, 1280]) results.push(await measure("/page", width));
	results.push(await measure("/bad", 390));
	await fetch("/result", {method: "POST", body: JSON.stringify(results)});
})();
</script>`

// bad does everything that a page must not, to show that it would be noticed.
const bad = `<!DOCTYPE html><title>bad</title><body><div style="width:2000px;font-size:5px">wide</div>
<img src="http://images.example/x.png"><script>console.error("a console error")</script>`

type measured struct {
	Width, Client, Scroll, Height, Smallest float64
	Wide, Loaded                            []string
	Cells                                   int
}

// TestBrowser looks at a page in Chromium, at the width of a phone and of a desktop: nothing sticks out, nothing is too
// small to read, the console stays empty and nothing else is loaded.
func TestBrowser(t *testing.T) {
	chromium := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			chromium = path
			break
		}
	}
	if chromium == "" {
		t.Skip("no chromium, which Debian has as a package of that name: the page is not looked at")
	}
	page := write(t, everything(t)...)
	result := make(chan []byte, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch at := r.URL.Path; {
		case r.Method == http.MethodConnect || r.URL.Host != "": // sent to us as a proxy, also by the browser for itself
			http.Error(w, "no network", http.StatusBadGateway)
		case at == "/":
			io.WriteString(w, harness)
		case at == "/page":
			io.WriteString(w, page)
		case at == "/bad":
			io.WriteString(w, bad)
		case at == "/result":
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			result <- body
		default:
			if at != "/favicon.ico" { // the browser's own idea
				t.Errorf("a request for %s", at)
			}
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--user-data-dir="+t.TempDir(), "--proxy-server="+server.Listener.Addr().String(), "--enable-logging=stderr",
		"--remote-debugging-port=0", server.URL+"/")
	cmd.Stderr = &stderr
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	defer stop()
	var got []measured
	select {
	case body := <-result:
		if err := json.Unmarshal(body, &got); err != nil || len(got) != 3 {
			t.Fatalf("%q: %v", body, err)
		}
	case <-time.After(2 * time.Minute):
		stop()
		t.Fatalf("chromium has not measured the page in two minutes\n%s", stderr.String())
	}
	time.Sleep(200 * time.Millisecond) // for the log of the console
	stop()
	cells := strings.Count(page, `<td style="--t:`) + strings.Count(page, `<td class="none">`)
	for _, m := range got[:2] {
		if m.Scroll > m.Client || len(m.Wide) > 0 {
			t.Errorf("at %g pixels the page is %g wide; %q", m.Width, m.Scroll, m.Wide)
		}
		const legible = 10 // pixels
		if m.Smallest < legible {
			t.Errorf("at %g pixels the smallest text has %.2f", m.Width, m.Smallest)
		}
		if m.Cells != cells || m.Height < 1000 {
			t.Errorf("at %g pixels %d cells of %d, %g pixels high", m.Width, m.Cells, cells, m.Height)
		}
		if len(m.Loaded) > 0 {
			t.Errorf("the page loads %q", m.Loaded)
		}
	}
	if b := got[2]; b.Scroll <= b.Client || len(b.Wide) == 0 || b.Smallest >= 10 || len(b.Loaded) != 1 {
		t.Errorf("the bad page was not found out: %+v", b)
	}
	var console []string
	for line := range strings.Lines(stderr.String()) {
		if strings.Contains(line, "CONSOLE") {
			console = append(console, line)
		}
	}
	for _, line := range console {
		if !strings.Contains(line, "/bad") && !strings.Contains(line, "images.example") {
			t.Errorf("in the console: %s", line)
		}
	}
	if s := fmt.Sprint(console); !strings.Contains(s, "a console error") {
		t.Errorf("the bad page's console error was not noticed: %s", s)
	}
}

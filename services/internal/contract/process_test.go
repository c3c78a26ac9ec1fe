package contract

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// programs builds the programs that the tests run as real processes, each at
// most once per run, into a folder that TestMain removes.
var programs struct {
	dir   string
	mu    sync.Mutex
	built map[string]error
}

func TestMain(m *testing.M) {
	if order := os.Getenv(memberVariable); order != "" {
		os.Exit(beMember(order))
	}
	dir, err := os.MkdirTemp("", "runnel-contract-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a folder for programs:", err)
		os.Exit(1)
	}
	programs.dir = dir
	programs.built = make(map[string]error)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// program returns the path of the program built from a main package.
func program(t *testing.T, mainPackage string) string {
	t.Helper()
	programs.mu.Lock()
	defer programs.mu.Unlock()
	name := strings.TrimSuffix(mainPackage, "/v3")
	path := filepath.Join(programs.dir, filepath.Base(name))
	err, done := programs.built[mainPackage]
	if !done {
		var out []byte
		out, err = exec.CommandContext(t.Context(), "go", "build", "-o", path, mainPackage).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("building %s: %w\n%s", mainPackage, err, out)
		}
		programs.built[mainPackage] = err
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func runnelProgram(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real processes, which the short tests leave out")
	}
	return program(t, module+"/services/runnel")
}

// process is a server process of a test. It is killed when the test ends.
type process struct {
	command *exec.Cmd
	log     *bytes.Buffer
	logMu   sync.Mutex
	done    chan struct{} // closed by the goroutine that waits for the process
}

func (p *process) Write(b []byte) (int, error) {
	p.logMu.Lock()
	defer p.logMu.Unlock()
	return p.log.Write(b)
}

func (p *process) output() string {
	p.logMu.Lock()
	defer p.logMu.Unlock()
	return p.log.String()
}

// start runs a program in the background and shows its output if the test
// fails.
func start(t *testing.T, path string, args ...string) *process {
	t.Helper()
	p, err := launch(path, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(t) })
	return p
}

// launch is start for goroutines other than the test's: the caller ends the
// process.
func launch(path string, args ...string) (*process, error) {
	p := newProcess(exec.Command(path, args...))
	p.command.Stdout = p
	return p, p.begin()
}

// newProcess returns a process that has not begun, whose errors go to its log.
func newProcess(command *exec.Cmd) *process {
	p := &process{command: command, log: new(bytes.Buffer), done: make(chan struct{})}
	command.Stderr = p
	return p
}

func (p *process) begin() error {
	if err := p.command.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.command.Path, err)
	}
	go func() {
		defer close(p.done)
		_ = p.command.Wait()
	}()
	return nil
}

func (p *process) end(t *testing.T) {
	p.kill()
	if t.Failed() {
		t.Logf("%s wrote:\n%s", strings.Join(p.command.Args, " "), tail(p.output(), 8<<10))
	}
}

// kill ends the process as a crash would (SIGKILL) and waits for it.
func (p *process) kill() {
	_ = p.command.Process.Kill()
	<-p.done
}

// interrupt asks the process to stop, as Ctrl-C would, and returns how long it
// took and its exit code.
func (p *process) interrupt(t *testing.T) (time.Duration, int) {
	t.Helper()
	begin := time.Now()
	if err := p.command.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatalf("interrupting: %v", err)
	}
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Fatal("the process does not stop on an interrupt")
	}
	return time.Since(begin), p.command.ProcessState.ExitCode()
}

// await waits until a URL answers with 200.
func (p *process) await(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for tick := time.Tick(20 * time.Millisecond); ; {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			_, _ = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick:
		case <-p.done:
			return fmt.Errorf("the process ended before it was ready:\n%s", tail(p.output(), 8<<10))
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer with 200 after 30 s:\n%s", url, tail(p.output(), 8<<10))
		}
	}
}

// addresses has the ports that were given away.
var addresses struct {
	mu    sync.Mutex
	given map[int]bool
}

// freeAddress returns a loopback address that nobody listens on, and that no other
// call returns. Its port is none of those that systems give to connections: a process
// that comes back must find it free.
func freeAddress(t *testing.T) string {
	t.Helper()
	addresses.mu.Lock()
	defer addresses.mu.Unlock()
	for range 1000 {
		port := 15_000 + rand.IntN(15_000)
		address := fmt.Sprintf("127.0.0.1:%d", port)
		if addresses.given[port] {
			continue
		}
		listener, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
		if addresses.given == nil {
			addresses.given = make(map[int]bool)
		}
		addresses.given[port] = true
		return address
	}
	t.Fatal("no port is free")
	return ""
}

// node is a process that may crash and come back on the same data.
type node struct {
	program string
	args    []string
	// id is its number in the cluster, 0 where it has none of its own.
	id int32
	// address is where it serves its clients, ready the URL that tells whether it does.
	address, ready string

	mu      sync.Mutex
	current *process
}

func (n *node) process() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.current
}

// launch starts the process without waiting for it.
func (n *node) launch() error {
	p, err := launch(n.program, n.args...)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.current = p
	n.mu.Unlock()
	return nil
}

// signal sends the process a signal, such as to pause it and to let it go on.
func (n *node) signal(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := n.process().command.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// await waits until the process is ready.
func (n *node) await(ctx context.Context) error { return n.process().await(ctx, n.ready) }

func (n *node) start(ctx context.Context) error {
	if err := n.launch(); err != nil {
		return err
	}
	return n.await(ctx)
}

// crash kills the process and starts it again on the same data.
func (n *node) crash(ctx context.Context) error {
	n.process().kill()
	return n.start(ctx)
}

// up is a whole cluster in one process, with its data directory.
type up struct {
	node
	dir string
}

func startUp(t *testing.T) *up {
	t.Helper()
	address, dir := freeAddress(t), t.TempDir()
	u := &up{dir: dir, node: node{
		program: runnelProgram(t), args: []string{"up", "--data-dir", dir, "--listen", address},
		address: address, ready: "http://" + address + "/readyz",
	}}
	if err := u.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.process().end(t) })
	return u
}

// result is what a finished command left.
type result struct {
	stdout, stderr string
	code           int
}

// runnel runs a client command against the address.
func runnel(t *testing.T, address string, stdin io.Reader, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	return run(t, ctx, stdin, append([]string{runnelProgram(t), "--bootstrap", address}, args...)...)
}

func run(t *testing.T, ctx context.Context, stdin io.Reader, line ...string) result {
	t.Helper()
	command := exec.CommandContext(ctx, line[0], line[1:]...)
	var stdout, stderr bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = stdin, &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("running %s: %v", strings.Join(line, " "), err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%s did not end: %v\nstderr: %s", strings.Join(line, " "), ctx.Err(), stderr.String())
	}
	return result{stdout: stdout.String(), stderr: stderr.String(), code: command.ProcessState.ExitCode()}
}

func (r result) mustSucceed(t *testing.T) result {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("exit code %d\nstdout: %s\nstderr: %s", r.code, tail(r.stdout, 2<<10), tail(r.stderr, 2<<10))
	}
	return r
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}

// lines splits as `runnel produce` does: at line feeds, the last line with or
// without one.
func lines(data []byte) []string {
	var out []string
	for r := bufio.NewReader(bytes.NewReader(data)); ; {
		line, err := r.ReadString('\n')
		if err != nil && line == "" {
			return out
		}
		out = append(out, strings.TrimSuffix(line, "\n"))
	}
}

//go:build real

package clients

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/real"
)

// surfaces are the rows, in the order of the table.
func (w *world) surfaces(t *testing.T, files, port, api string) (rows []surface) {
	t.Helper()
	socket, proxy := w.path("broker.sock"), w.path("proxy/api.sock")
	inGo, broker := goClient(t), filepath.Join(real.Root(), "dist", "broker")
	add := func(name, language string, again bool, command ...string) *surface {
		rows = append(rows, surface{name: name, language: language, again: again, command: command})
		return &rows[len(rows)-1]
	}
	var python *language
	clients := map[string]string{"python": "Python", "shell": "POSIX shell", "node": "Node", "php": "PHP", "java": "Java"}
	plain := map[string]string{"sh": "curl", "python": "Python, http.client", "js": "Node, http", "php": "PHP, curl", "java": "Java, SocketChannel"}

	const consumer = "consumer socket"
	add(consumer, "curl", false, "curl", "-sSf", "--unix-socket", socket, "http://localhost/v1/clients/vdab/token")
	add(consumer, "broker token", false, broker, "token", "vdab")
	add(consumer, "Go, api/client", true, inGo, "token", "vdab")
	for _, l := range languages() {
		if l.prepare != nil {
			l.prepare(t, l)
		}
		if l.name == "python" {
			python = l
		}
		add(consumer, clients[l.name]+", clients/", l.name != "shell", append(l.driver, "10", "token", "vdab")...).env = l.env
	}
	for _, r := range recipes(t) {
		add(consumer, plain[r.language]+" (recipe)", false, r.showing(t, socket, "/v1/clients/vdab/headers")...)
	}

	const endpoint = "POST /oauth2/token"
	add(endpoint, "Python, Authlib", true, python.driver[0], source("integration", "clients", "oauth.py"), "vdab")
	add(endpoint, "Node, openid-client", true, "node", source("integration", "clients", "oauth.mjs"), "vdab").env = []string{
		"OPENID_CLIENT=" + real.Path("clients-node", "node_modules", "openid-client", "build", "index.js")}
	add(endpoint, "Go, x/oauth2", true, inGo, "oauth", "vdab")

	add("files", "POSIX shell", false, "dash", "-c", `. "$1" && printf '%s\n' "$ACCESS_TOKEN"`, "dash", files+"/token.env")
	add("files", "Python", true, append(python.driver, "10", "file", "vdab", files+"/token.json")...).env = python.env

	add("exec", "POSIX shell, file", false, broker, "exec", "vdab", "--", "dash", "-c", `cat "$CREDENTIAL_BROKER_TOKEN_FILE"`)
	add("exec", "POSIX shell, --env", false, broker, "exec", "--env", "vdab", "--", "dash", "-c", `printf '%s\n' "$CREDENTIAL_BROKER_TOKEN"`)

	add("events", "Go, api/client", true, inGo, "events", "vdab")
	add("events", "Python, httpx", true, append(python.driver, "10", "events", "vdab")...).env = python.env

	add("loopback", "curl", false, "curl", "-sSf", "--noproxy", "*", "http://"+port+"/v1/clients/vdab/token")
	add("loopback", "Java, HttpClient", false, javaOnLoopback(t, "127.0.0.1:8085", port)...)

	const reverse = "reverse proxy"
	for _, r := range recipes(t) {
		path := "/from/" + r.language
		add(reverse, plain[r.language], false, r.showing(t, proxy, path)...).upstream = path
	}
	add(reverse, "Go, net/http", true, inGo, "get", proxy, "/from/go").upstream = "/from/go"

	const onPort = "reverse proxy, loopback"
	add(onPort, "curl", false, "curl", "-sSf", "--noproxy", "*", "http://"+api+"/port/curl").upstream = "/port/curl"
	add(onPort, "Python, urllib", false, "python3", "-c", "import sys, urllib.request as u; print(u.build_opener(u.ProxyHandler({})).open(sys.argv[1]).read().decode())", "http://"+api+"/port/python").upstream = "/port/python"
	add(onPort, "Node, http", false, "node", "-e", "require('http').get(process.argv[1], r => r.pipe(process.stdout))", "http://"+api+"/port/node").upstream = "/port/node"
	add(onPort, "PHP, file_get_contents", false, "php", "-r", "echo file_get_contents($argv[1]);", "http://"+api+"/port/php").upstream = "/port/php"
	add(onPort, "Java, HttpClient", false, javaOnLoopback(t, "127.0.0.1:8085/v1/clients/vdab/headers", api+"/port/java")...).upstream = "/port/java"

	const unit = "surfaces.service"
	add("credential.sock", "systemd (played; booted: integration/nspawn)", false, inGo, "credential", w.path("credential.sock"), unit, "vdab.token").cgroup = cgroup(t, unit)
	return rows
}

// showing makes a recipe print values in place of names, from a path of a
// socket, and gives the command that runs it.
func (r recipe) showing(t *testing.T, socket, path string) []string {
	t.Helper()
	body := r.body
	for _, change := range [][2]string{
		{"/run/credential-broker/broker.sock", socket},
		{"/v1/clients/vdab/headers", path},
		map[string][2]string{
			"sh":     {"| sed 's/:.*//'", ""},
			"python": {"print(*headers)", "print(*headers.values())"},
			"js":     {"Object.keys(", "Object.values("},
			"php":    {"array_keys(", "array_values("},
			"java":   {"line.substring(0, line.indexOf(':'))", "line"},
		}[r.language],
	} {
		if strings.Count(body, change[0]) != 1 {
			t.Fatalf("the recipe in %s has %q not once", r.language, change[0])
		}
		body = strings.Replace(body, change[0], change[1], 1)
	}
	file := r.file(t, body)
	if r.language == "java" {
		return compiled(t, file)
	}
	return append(r.command[:1:1], file)
}

// compiled is the command for a class Recipe: what an application does, and not
// the compiler, is what costs.
func compiled(t *testing.T, file string) []string {
	t.Helper()
	dir := t.TempDir()
	real.Must(t, exec.Command("javac", "-d", dir, file))
	return []string{"java", "-XX:TieredStopAtLevel=1", "-cp", dir, "Recipe"}
}

// javaOnLoopback is the example of docs/applications.md, with another address.
func javaOnLoopback(t *testing.T, from, to string) []string {
	t.Helper()
	text, err := os.ReadFile(source("docs", "applications.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```java\n")
	example, _, _ := strings.Cut(rest, "```")
	if strings.Count(example, from) != 1 || !strings.Contains(example, "var headers = HttpClient.") {
		t.Fatalf("another example:\n%s", example)
	}
	return compiled(t, recipe{language: "java"}.file(t, "import java.net.*; import java.net.http.*; import java.net.http.HttpResponse.BodyHandlers;\n"+
		"class Recipe { public static void main(String[] a) throws Exception {\n"+strings.Replace(example, from, to, 1)+
		"if (headers.statusCode() != 200) throw new Exception(headers.body());\nSystem.out.println(headers.body()); } }\n"))
}

// cgroup makes the cgroup of a unit, so that the kernel says of a process in it
// what it says of systemd's own when it starts that unit.
func cgroup(t *testing.T, unit string) *os.File {
	t.Helper()
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		mount, kind, _ := strings.Cut(lines.Text(), " - ")
		if !strings.HasPrefix(kind, "cgroup2 ") {
			continue
		}
		slice := filepath.Join(strings.Fields(mount)[4], "surfaces"+strconv.Itoa(os.Getpid())+".slice")
		dir := filepath.Join(slice, unit)
		t.Cleanup(func() { _ = os.Remove(dir); _ = os.Remove(slice) })
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	t.Fatal("no cgroup v2 is mounted here: systemd cannot be played")
	return nil
}

// awaitFiles waits until the daemon has written them.
func awaitFiles(t *testing.T, names ...string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); len(names) > 0; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(names[0]); err == nil {
			names = names[1:]
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

//go:build real

package servers

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/real"
)

const (
	area     = "recipes for servers"
	autoload = "/usr/share/php/GuzzleHttp/autoload.php"
)

// site is a directory with the page, its client and Guzzle.
func (w *world) site(name string) {
	page := strings.ReplaceAll(w.block("vacatures.php"), "__DIR__ . '/vendor/autoload.php'", "'"+autoload+"'")
	w.write(name+"/vacatures.php", page)
	w.copy(name+"/CredentialBroker.php", "clients", "CredentialBroker.php")
}

// startFPM starts php-fpm with the recipe's pool, and one like it of another
// user.
func (w *world) startFPM() {
	pool := strings.ReplaceAll(w.block("vacatures.conf"), w.dir+"/vacatures\n", w.dir+"/vacatures:/usr/share/php\n") + "env[CREDENTIAL_BROKER_SOCKET] = " + w.path("broker.sock") + "\n"
	blog := strings.NewReplacer("[vacatures]", "[blog]", "user = www-data", "user = nobody", "group = www-data", "group = nogroup", "vacatures.sock", "blog.sock", w.dir+"/vacatures:", w.dir+"/blog:").Replace(pool)
	w.write("fpm.conf", "[global]\nerror_log = /proc/self/fd/2\n"+pool+blog)
	w.site("vacatures")
	w.site("blog")
	real.StartUnix(w.t, w.path("vacatures.sock"), w.inUnit("php8.2-fpm.service", "php-fpm8.2", "--nodaemonize", "--fpm-config", w.path("fpm.conf")))
}

// fcgi asks a pool for a page, as a web server does.
func (w *world) fcgi(pool, page string) string {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), "cgi-fcgi", "-bind", "-connect", w.path(pool+".sock"))
	cmd.Env = []string{"PATH=/usr/bin:/bin", "SCRIPT_FILENAME=" + w.path(page), "REQUEST_METHOD=GET"}
	return real.Must(w.t, cmd)
}

func TestPHPFPM(t *testing.T) {
	real.Row(t, area, "php-fpm 8.2 (Debian)", "the page of the pool shows the API's answer; another pool, and the user elsewhere, are refused")
	w := newWorld(t, "php-fpm.allow")
	w.startFPM()
	shows(t, "the pool", w.fcgi("vacatures", "vacatures/vacatures.php"), vacancy)
	shows(t, "another pool of the unit", w.fcgi("blog", "blog/vacatures.php"), "not_allowed")
	shows(t, "the user outside of the unit", w.as("www-data", "", "php", w.path("vacatures/vacatures.php")), "not_allowed")
	// The page's reason for open_basedir: it stops files, not the socket.
	w.write("outside", "outside of open_basedir")
	w.write("vacatures/read.php", "<?php echo @file_get_contents('"+w.path("outside")+"') === false ? 'cannot be read' : 'read';")
	shows(t, "open_basedir", w.fcgi("vacatures", "vacatures/read.php"), "cannot be read")
	if out := w.check(); strings.Contains(out, "allow entry 1") {
		t.Errorf("broker check has something against the entry:\n%s", out)
	}
}

// startApache starts Apache with a file of the recipe.
func (w *world) startApache(sites string) (addr string) {
	addr = real.FreeAddr(w.t)
	w.write("apache.conf", `ServerRoot "/usr/lib/apache2"
LoadModule mpm_prefork_module modules/mod_mpm_prefork.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule proxy_module modules/mod_proxy.so
LoadModule proxy_fcgi_module modules/mod_proxy_fcgi.so
LoadModule php_module modules/libphp8.2.so
Listen `+addr+`
User www-data
Group www-data
ServerName localhost
PidFile `+w.path("apache.pid")+`
DefaultRuntimeDir `+w.dir+`
ErrorLog "|$/bin/cat"
<FilesMatch "\.php$">
    SetHandler application/x-httpd-php
</FilesMatch>
`+strings.ReplaceAll(w.block(sites), "*:80", addr))
	real.Start(w.t, addr, w.inUnit("apache2.service", "apache2", "-X", "-f", w.path("apache.conf")))
	return addr
}

func TestModPHP(t *testing.T) {
	real.Row(t, area, "Apache 2.4 with mod_php (Debian)", "every site gets the token, and broker check says so; another user, and the user elsewhere, are refused")
	w := newWorld(t, "mod_php.allow")
	w.site("vacatures")
	w.site("blog")
	addr := w.startApache("sites.conf")
	for _, site := range []string{"vacatures.example.org", "blog.example.org"} {
		_, body := ask(t, http.MethodGet, addr, site, "/vacatures.php")
		shows(t, site, body, vacancy)
	}
	shows(t, "broker check", w.check(), "allow entry 1 matches every site of apache2.service")
	shows(t, "the user outside of the unit", w.as("www-data", "", "php", w.path("vacatures/vacatures.php")), "not_allowed")
	shows(t, "another user in the unit", w.as("nobody", "apache2.service", "php", w.path("vacatures/vacatures.php")), "not_allowed")
}

func TestApacheWithPools(t *testing.T) {
	real.Row(t, area, "Apache 2.4 with a pool of php-fpm (Debian)", "the site with the pool gets the token; the site beside it, by mod_php, is refused")
	w := newWorld(t, "php-fpm.allow")
	w.startFPM()
	addr := w.startApache("pool.conf")
	_, body := ask(t, http.MethodGet, addr, "vacatures.example.org", "/vacatures.php")
	shows(t, "the pool", body, vacancy)
	_, body = ask(t, http.MethodGet, addr, "blog.example.org", "/vacatures.php")
	shows(t, "mod_php", body, "not_allowed")
}

func TestTomcat(t *testing.T) {
	real.Row(t, area, "Tomcat 10 (Debian)", "a servlet shows the API's answer; a Tomcat of another user is refused; broker check says that applications are one")
	w := newWorld(t, "tomcat.allow")
	w.write("src/VacaturesServlet.java", w.block("VacaturesServlet.java"))
	w.copy("src/CredentialBroker.java", "clients", "CredentialBroker.java")
	real.Must(t, exec.Command("javac", "-cp", "/usr/share/tomcat10/lib/servlet-api.jar", "-d", w.path("classes"), w.path("src/VacaturesServlet.java"), w.path("src/CredentialBroker.java")))
	run := func(user string) string {
		base, addr := "base-"+user, real.FreeAddr(t)
		_, port, _ := strings.Cut(addr, ":")
		w.write(base+"/conf/server.xml", `<Server port="-1"><Service name="Catalina">
<Connector address="127.0.0.1" port="`+port+`"/><Engine name="Catalina" defaultHost="localhost"><Host name="localhost" appBase="webapps"/></Engine></Service></Server>`)
		w.write(base+"/conf/web.xml", `<web-app xmlns="https://jakarta.ee/xml/ns/jakartaee" version="5.0"/>`)
		w.write(base+"/webapps/ROOT/WEB-INF/web.xml", `<web-app xmlns="https://jakarta.ee/xml/ns/jakartaee" version="5.0"/>`)
		for _, d := range []string{"logs", "temp", "work"} {
			w.write(base+"/"+d+"/.keep", "")
		}
		real.Must(t, exec.Command("cp", "-r", w.path("classes"), w.path(base, "webapps/ROOT/WEB-INF/classes")))
		real.Must(t, exec.Command("chown", "-R", user+":"+group(user), w.path(base)))
		cmd := w.inUnit("tomcat10.service", "setpriv", "--reuid", user, "--regid", group(user), "--clear-groups", "/usr/share/tomcat10/bin/catalina.sh", "run")
		cmd.Env = append(cmd.Env, "CATALINA_HOME=/usr/share/tomcat10", "CATALINA_BASE="+w.path(base), "CATALINA_TMPDIR="+w.path(base, "temp"), "JAVA_OPTS=-Djava.awt.headless=true -Dtomcat.util.scan.StandardJarScanFilter.jarsToSkip=*.jar")
		real.Start(t, addr, cmd)
		_, body := ask(t, http.MethodGet, addr, "localhost", "/vacatures")
		return body
	}
	shows(t, "tomcat", run("tomcat"), vacancy)
	shows(t, "another user", run("nobody"), "not_allowed")
	shows(t, "broker check", w.check(), "allow entry 1 matches every application in tomcat10.service")
}

// job puts the script of cron and timers into the world.
func (w *world) job() {
	w.write("bin/vacatures-feed", w.block("vacatures-feed"))
	w.copy("lib/credential-broker.sh", "clients", "credential-broker.sh")
	real.Must(w.t, exec.Command("chmod", "0755", w.path("bin/vacatures-feed")))
	for _, user := range []string{"www-data", "nobody"} {
		real.Must(w.t, exec.Command("install", "-d", "-o", user, w.path("of-"+user)))
	}
}

// until waits for the text of a file.
func until(t *testing.T, name string) string {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if b, err := os.ReadFile(name); err == nil && len(b) > 0 {
			return string(b)
		}
	}
	t.Fatalf("%s has not come", name)
	return ""
}

func TestCron(t *testing.T) {
	real.Row(t, area, "cron (Debian)", "a job fetches from the API; the job of another user, and the user elsewhere, are refused and write nothing")
	w := newWorld(t, "cron.allow")
	w.job()
	lines := strings.NewReplacer("*/15 * * * *", "@reboot", w.dir+"/feed.json", w.dir+"/of-www-data/feed.json 2>"+w.dir+"/of-www-data/said").Replace(w.block("vacatures.cron"))
	mine := lines[strings.Index(lines, "@reboot"):]
	lines += strings.ReplaceAll(mine, "www-data", "nobody")
	w.write("cron.d/vacatures", "CREDENTIAL_BROKER_SOCKET="+w.path("broker.sock")+"\n"+lines)
	// The machine's own jobs stay out of it: cron sees its table alone, and a /run
	// of its own, where it notes that it has seen this boot.
	cmd := w.inUnit("cron.service", "unshare", "--mount", "sh", "-ec", `mount -t tmpfs none /run
mount -t tmpfs none /var/spool/cron
mkdir -p /var/spool/cron/crontabs
mount --bind /dev/null /etc/crontab
mount --bind `+w.path("cron.d")+` /etc/cron.d
exec cron -f`)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	shows(t, "the job", until(t, w.path("of-www-data/feed.json")), vacancy)
	shows(t, "another user's job", until(t, w.path("of-nobody/said")), "not_allowed")
	if b, err := os.ReadFile(w.path("of-nobody/feed.json")); err == nil {
		t.Errorf("a refused job has written a feed: %q", b)
	}
	shows(t, "the user outside of the unit", w.as("www-data", "", w.path("bin/vacatures-feed"), w.path("of-www-data/other.json")), "not_allowed")
}

func TestTimer(t *testing.T) {
	real.Row(t, area, "systemd timer (Debian)", "systemd-analyze finds no mistake; the job fetches in its unit alone")
	w := newWorld(t, "timer.allow")
	w.job()
	service := w.block("vacatures-feed.service")
	w.write("units/vacatures-feed.service", service)
	w.write("units/vacatures-feed.timer", w.block("vacatures-feed.timer"))
	if out := real.Must(t, exec.Command("systemd-analyze", "verify", "--recursive-errors=no", w.path("units/vacatures-feed.service"), w.path("units/vacatures-feed.timer"))); strings.Contains(out, "vacatures") {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	shows(t, "the unit's command", service, "\nExecStart="+w.path("bin/vacatures-feed")+" ${STATE_DIRECTORY}/feed.json\n")
	if out := w.as("www-data", "vacatures-feed.service", w.path("bin/vacatures-feed"), w.path("of-www-data/feed.json")); out != "" {
		t.Error(out)
	}
	shows(t, "the job", until(t, w.path("of-www-data/feed.json")), vacancy)
	shows(t, "another user", w.as("nobody", "vacatures-feed.service", w.path("bin/vacatures-feed"), w.path("of-nobody/feed.json")), "not_allowed")
	shows(t, "by hand", w.as("www-data", "", w.path("bin/vacatures-feed"), w.path("of-www-data/feed.json")), "not_allowed")
}

func TestNginx(t *testing.T) {
	real.Row(t, area, "nginx 1.22, auth_request (Debian)", "who has logged in gets the API's answer and no credential; nobody else; an nginx of another user is refused")
	w := newWorld(t, "nginx.allow")
	application := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/session" || r.Header.Get("Cookie") != "session=good" {
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		rw.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(application.Close)
	run := func(user string) (addr string) {
		addr = real.FreeAddr(t)
		locations := strings.ReplaceAll(w.block("vacatures.nginx"), "http://127.0.0.1:8080", application.URL)
		w.write("nginx-"+user+".conf", "user "+user+" "+group(user)+";\ndaemon off;\nworker_processes 1;\npid "+w.path("nginx-"+user+".pid")+";\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"+
			"client_body_temp_path "+w.path("body-"+user)+";\nproxy_temp_path "+w.path("proxy-"+user)+";\nfastcgi_temp_path "+w.path("fastcgi-"+user)+";\nuwsgi_temp_path "+w.path("uwsgi-"+user)+";\nscgi_temp_path "+w.path("scgi-"+user)+
			";\nserver {\nlisten "+addr+";\n"+locations+"}\n}\n")
		real.Start(t, addr, w.inUnit("nginx.service", "nginx", "-e", "stderr", "-c", w.path("nginx-"+user+".conf")))
		return addr
	}
	addr := run("www-data")
	browser := []string{"Cookie: session=good", "Origin: https://vacatures.example.org", "Sec-Fetch-Site: same-origin", "X-Forwarded-For: 192.0.2.1", "Authorization: Basic Zm9vOmJhcg=="}
	status, body := ask(t, http.MethodGet, addr, "vacatures.example.org", "/vacatures", browser...)
	shows(t, "logged in", body, vacancy)
	if lower := strings.ToLower(body); status != http.StatusOK || strings.Contains(lower, "bearer") || strings.Contains(lower, "key-one") {
		t.Errorf("%d, or a credential: %s", status, body)
	}
	if status, body := ask(t, http.MethodGet, addr, "vacatures.example.org", "/vacatures", browser[1:]...); status != http.StatusUnauthorized || strings.Contains(body, vacancy) {
		t.Errorf("without a session: %d %s", status, body)
	}
	if status, body := ask(t, http.MethodPost, addr, "vacatures.example.org", "/vacatures", browser...); status != http.StatusForbidden {
		t.Errorf("POST: %d %s", status, body)
	}
	if status, body := ask(t, http.MethodGet, addr, "vacatures.example.org", "/permitted", browser...); status != http.StatusNotFound {
		t.Errorf("the internal location: %d %s", status, body)
	}
	if status, body := ask(t, http.MethodGet, addr, "vacatures.example.org", "/vacatures/%2e%2e/other", browser...); strings.Contains(body, vacancy) || status < 400 {
		t.Errorf("a path outside of the route: %d %s", status, body)
	}
	if status, body := ask(t, http.MethodGet, run("nobody"), "vacatures.example.org", "/vacatures", browser...); status != http.StatusForbidden || strings.Contains(body, "uid") || strings.Contains(body, "not_allowed") {
		t.Errorf("an nginx of another user: %d %s", status, body)
	}
}

// A process where Quadlet puts it: no Podman, but the same cgroup, user and pid
// namespaces.
func TestContainer(t *testing.T) {
	real.Row(t, area, "a process in the place of a Quadlet container (Linux)", "its unit and container: allow decide; without container: allow it is refused; the file's form alone is looked at")
	enter := func(w *world, unit string) string {
		return w.as("www-data", unit, "unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "sh", "-ec",
			`mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; ! touch "$0/new" 2>/dev/null; exec curl -sS --unix-socket "$0/broker.sock" http://localhost/v1/clients/vdab/headers`, w.dir)
	}
	const inside = "vacatures.service/libpod-payload-1"
	w := newWorld(t, "quadlet.allow")
	shows(t, "in the container", enter(w, inside), "Authorization: Bearer ")
	shows(t, "in a container of another unit", enter(w, "blog.service/libpod-payload-1"), "not_allowed")
	section := ""
	for l := range strings.Lines(w.block("vacatures.container")) {
		l = strings.TrimSpace(l)
		key, _, pair := strings.Cut(l, "=")
		switch {
		case strings.HasPrefix(l, "["):
			section = l
		case l != "" && (!pair || !strings.Contains(map[string]string{"[Unit]": " Description Requires After ", "[Container]": " Image UserNS Volume ", "[Install]": " WantedBy "}[section], " "+key+" ")):
			t.Errorf("%s %s", section, l)
		}
	}
	strict := newWorld(t, "timer.allow") // a unit and a user, without container: allow
	shows(t, "without container: allow", enter(strict, "vacatures-feed.service/libpod-payload-1"), "not_allowed")
	shows(t, "outside of a container", strict.as("www-data", "vacatures-feed.service", "curl", "-sS", "--unix-socket", strict.path("broker.sock"), "http://localhost/v1/clients/vdab/headers"), "Authorization: Bearer ")
}

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.StandardProtocolFamily;
import java.net.URLEncoder;
import java.net.UnixDomainSocketAddress;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.channels.AsynchronousCloseException;
import java.nio.channels.ClosedByInterruptException;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Flow;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;

/**
 * Ask the credential broker for tokens. One file, Java 17 or newer alone; put it into a package of yours.
 *
 * <p>Ask for every call to the API and keep nothing: the broker keeps tokens fresh, an application cannot.
 *
 * <pre>{@code
 *     CredentialBroker broker = new CredentialBroker();
 *     HttpClient http = HttpClient.newHttpClient();
 *     HttpRequest request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(30)).build();
 *     HttpResponse<String> answer = broker.send(http, "vdab", request, HttpResponse.BodyHandlers.ofString());
 * }</pre>
 *
 * <p>send() does what each call needs: it adds the headers that the API wants and, if the API answers 401, tells the
 * broker and repeats the call once if there is another token. token(), headers() and reject() are the same by hand. A 503
 * or 429 of the broker is waited for as its Retry-After says, within the patience; every other refusal is a
 * BrokerException at once: its code is for the program, its detail says what to do.
 *
 * <p>It may be used by many threads, and holds no connection and no secret.
 */
public final class CredentialBroker {
    private static final String ENVIRONMENT = "CREDENTIAL_BROKER_SOCKET";
    private static final int MAX_ANSWER = 8 << 20; // bytes
    private static final int MAX_MORE = 2000; // characters of moreInformation; the broker takes 2048

    private final Path socket;
    private final Duration timeout;
    private final Duration patience;

    /** The default socket, 10 seconds for each answer, 10 seconds of patience. */
    public CredentialBroker() {
        this(defaultSocket(), Duration.ofSeconds(10), Duration.ofSeconds(10));
    }

    /** timeout is for each answer; patience is what may be spent, in all, on waiting as Retry-After says. */
    public CredentialBroker(Path socket, Duration timeout, Duration patience) {
        this.socket = socket;
        this.timeout = timeout;
        this.patience = patience;
    }

    /** $CREDENTIAL_BROKER_SOCKET, the broker that this user has started by hand, or the system's. */
    public static Path defaultSocket() {
        String named = System.getenv(ENVIRONMENT);
        if (named != null && !named.isEmpty()) {
            return Path.of(named);
        }
        String dir = System.getenv("XDG_RUNTIME_DIR");
        if (dir != null && !dir.isEmpty() && !root()) {
            Path own = Path.of(dir, "credential-broker", "broker.sock");
            if (Files.exists(own)) {
                return own;
            }
        }
        return Path.of("/run/credential-broker/broker.sock");
    }

    private static boolean root() {
        try {
            return Files.getAttribute(Path.of("/proc/self"), "unix:uid").equals(0);
        } catch (IOException | UnsupportedOperationException e) {
            return false;
        }
    }

    /** What the broker refused (an error document of RFC 9457), or that it did not answer (code "unreachable"). */
    public static final class BrokerException extends IOException {
        private static final long serialVersionUID = 1;
        /** See docs/errors.md; "quarantined", "not_allowed", … */
        public final String code;
        /** A sentence that says what to do. */
        public final String detail;
        /** HTTP; 0: there was no answer. */
        public final int status;
        /** In seconds; 0: it is not known when trying again may help. */
        public final long retryAfter;

        BrokerException(String code, String detail, int status, long retryAfter) {
            super(code + ": " + detail);
            this.code = code;
            this.detail = detail;
            this.status = status;
            this.retryAfter = retryAfter;
        }
    }

    /**
     * A token as in RFC 6749, section 5.1: access_token, token_type, expires_in …
     *
     * @param options by name: scope, audience, resource, min_ttl ("30s")
     */
    public Map<String, Object> token(String client, Map<String, String> options) throws IOException, InterruptedException {
        return ask("GET", client, "token" + query(options), null);
    }

    /** All headers that a call to the client's API needs, by name. Options as of token(). */
    public Map<String, String> headers(String client, Map<String, String> options) throws IOException, InterruptedException {
        Map<String, String> out = new LinkedHashMap<>();
        ask("GET", client, "headers" + query(options), null).forEach((name, value) -> out.put(name, String.valueOf(value)));
        return out;
    }

    /**
     * Tell that the API refused a token. Ask again afterwards, and repeat the call once if the token is another.
     *
     * @param accessToken null: none
     * @param moreInformation the text of that name in API Connect's answer, or null: by it the broker tells a refused API
     *     key (BrokerException "api_key_rejected") from a refused token
     */
    public Map<String, Object> reject(String client, String accessToken, int status, String moreInformation) throws IOException, InterruptedException {
        StringBuilder body = new StringBuilder("{\"status\":").append(status);
        if (accessToken != null) {
            body.append(",\"access_token\":").append(Json.quoted(accessToken));
        }
        if (moreInformation != null) {
            body.append(",\"more_information\":").append(Json.quoted(moreInformation.substring(0, Math.min(MAX_MORE, moreInformation.length()))));
        }
        return ask("POST", client, "reject", body.append('}').toString());
    }

    /**
     * HttpClient.send() with the client's headers. The HttpClient has to follow no redirects, as is its default: to another
     * host, token and API key would go along. The body of the request has to be one that can be sent twice, as those of
     * HttpRequest.BodyPublishers.
     */
    public <T> HttpResponse<T> send(HttpClient http, String client, HttpRequest request, HttpResponse.BodyHandler<T> handler)
            throws IOException, InterruptedException {
        if (http.followRedirects() != HttpClient.Redirect.NEVER) {
            throw new IllegalArgumentException("an HttpClient that follows redirects would take the credentials to other hosts");
        }
        AtomicReference<byte[]> refusal = new AtomicReference<>(new byte[0]);
        HttpResponse.BodyHandler<T> watching = info -> info.statusCode() != 401 ? handler.apply(info)
                : HttpResponse.BodySubscribers.mapping(HttpResponse.BodySubscribers.ofByteArray(), bytes -> {
                    refusal.set(bytes);
                    return replay(handler.apply(info), bytes);
                });
        Map<String, String> sent = headers(client, Map.of());
        HttpResponse<T> answer = http.send(with(request, sent), watching);
        if (answer.statusCode() != 401) {
            return answer;
        }
        reject(client, tokenIn(sent), 401, moreInformation(refusal.get()));
        Map<String, String> now = headers(client, Map.of());
        return now.equals(sent) ? answer : http.send(with(request, now), handler);
    }

    private static HttpRequest with(HttpRequest request, Map<String, String> headers) {
        HttpRequest.Builder b = HttpRequest.newBuilder(request, (name, value) -> true);
        headers.forEach(b::setHeader);
        return b.build();
    }

    /** Gives a subscriber a body that has been read already. */
    private static <T> T replay(HttpResponse.BodySubscriber<T> to, byte[] body) {
        to.onSubscribe(new Flow.Subscription() {
            @Override public void request(long n) { }
            @Override public void cancel() { }
        });
        to.onNext(List.of(ByteBuffer.wrap(body)));
        to.onComplete();
        return to.getBody().toCompletableFuture().join();
    }

    private static String tokenIn(Map<String, String> headers) {
        for (Map.Entry<String, String> h : headers.entrySet()) {
            if (h.getKey().equalsIgnoreCase("Authorization")) {
                return h.getValue().substring(h.getValue().indexOf(' ') + 1);
            }
        }
        return null;
    }

    private static String moreInformation(byte[] body) {
        return Json.object(new String(body, StandardCharsets.UTF_8)).get("moreInformation") instanceof String s ? s : null;
    }

    private Map<String, Object> ask(String method, String client, String what, String body) throws IOException, InterruptedException {
        String path = "/v1/clients/" + escaped(client) + "/" + what;
        long until = System.nanoTime() + patience.toNanos();
        while (true) {
            try {
                return once(method, path, body);
            } catch (BrokerException e) {
                boolean later = (e.status == 429 || e.status == 503) && e.retryAfter > 0;
                if (!later || System.nanoTime() + TimeUnit.SECONDS.toNanos(e.retryAfter) - until > 0) {
                    throw e;
                }
                TimeUnit.SECONDS.sleep(e.retryAfter);
            }
        }
    }

    private Map<String, Object> once(String method, String path, String body) throws IOException, InterruptedException {
        byte[] content = body == null ? new byte[0] : body.getBytes(StandardCharsets.UTF_8);
        String head = method + " " + path + " HTTP/1.1\r\nHost: broker\r\nConnection: close\r\nAccept: application/json\r\nUser-Agent: credential-broker-client\r\n"
                + (body == null ? "" : "Content-Type: application/json\r\nContent-Length: " + content.length + "\r\n") + "\r\n";
        try (SocketChannel channel = SocketChannel.open(StandardProtocolFamily.UNIX)) {
            // A blocking channel has no timeout of its own: closing it ends whatever it waits for.
            CompletableFuture<Void> alarm = CompletableFuture.runAsync(() -> closeQuietly(channel),
                    CompletableFuture.delayedExecutor(timeout.toMillis(), TimeUnit.MILLISECONDS));
            channel.connect(UnixDomainSocketAddress.of(socket));
            write(channel, head.getBytes(StandardCharsets.US_ASCII));
            write(channel, content);
            byte[] answer = readAll(channel);
            alarm.cancel(false);
            return read(answer);
        } catch (BrokerException e) {
            throw e;
        } catch (ClosedByInterruptException e) {
            Thread.interrupted();
            throw new InterruptedException();
        } catch (AsynchronousCloseException e) {
            throw unreachable("no answer within " + timeout.toMillis() + " ms");
        } catch (IOException e) {
            throw unreachable(String.valueOf(e.getMessage()));
        }
    }

    private BrokerException unreachable(String why) {
        return new BrokerException("unreachable", "no broker answers on " + socket + ": " + why + "; is it running? (" + ENVIRONMENT + " names another socket)", 0, 0);
    }

    private static void closeQuietly(SocketChannel channel) {
        try {
            channel.close();
        } catch (IOException e) {
            // Whoever waits sees that it is closed.
        }
    }

    private static void write(SocketChannel channel, byte[] bytes) throws IOException {
        for (ByteBuffer b = ByteBuffer.wrap(bytes); b.hasRemaining(); ) {
            channel.write(b);
        }
    }

    private static byte[] readAll(SocketChannel channel) throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        ByteBuffer b = ByteBuffer.allocate(8192);
        while (channel.read(b) >= 0) {
            out.write(b.array(), 0, b.position());
            b.clear();
            if (out.size() > MAX_ANSWER) {
                throw new IOException("the answer is too long");
            }
        }
        return out.toByteArray();
    }

    /** The JSON object of an answer; a refusal is thrown. */
    private static Map<String, Object> read(byte[] answer) throws IOException {
        String text = new String(answer, StandardCharsets.ISO_8859_1);
        int end = text.indexOf("\r\n\r\n");
        if (end < 0 || !text.matches("(?s)HTTP/1\\.1 \\d{3}[ \r].*")) {
            throw new IOException("its answer is not HTTP, or broke off");
        }
        int status = Integer.parseInt(text.substring(9, 12));
        int length = -1;
        for (String line : text.substring(0, end).split("\r\n")) {
            if (line.toLowerCase(java.util.Locale.ROOT).matches("content-length: *\\d{1,9} *")) {
                length = Integer.parseInt(line.substring(line.indexOf(':') + 1).trim());
            }
        }
        if (length != answer.length - end - 4) {
            throw new IOException("its answer broke off");
        }
        Map<String, Object> document = Json.object(new String(answer, end + 4, length, StandardCharsets.UTF_8));
        if (status == 200 && !document.isEmpty()) {
            return document;
        }
        if (status != 200 && document.get("code") instanceof String code) {
            throw new BrokerException(code, detail(document), status, document.get("retry_after") instanceof Number n ? n.longValue() : 0);
        }
        throw new BrokerException("unreachable", "the answer, with status " + status + ", is not the broker's", status, 0);
    }

    /** What to do, and whom the broker sees. */
    private static String detail(Map<String, Object> document) {
        String detail = String.valueOf(document.get("detail"));
        if (!(document.get("identity") instanceof String identity)) {
            return detail;
        }
        String clients = "";
        for (Object c : document.get("clients") instanceof List<?> l ? l : List.of()) {
            clients += (clients.isEmpty() ? "; you may use: " : ", ") + c;
        }
        return detail + " (you are seen as: " + identity + clients + ")";
    }

    private static String query(Map<String, String> options) {
        List<String> parts = new ArrayList<>();
        options.forEach((name, value) -> parts.add(escaped(name) + "=" + escaped(value)));
        return parts.isEmpty() ? "" : "?" + String.join("&", parts);
    }

    private static String escaped(String s) {
        return URLEncoder.encode(s, StandardCharsets.UTF_8).replace("+", "%20");
    }

    /** As much of JSON (RFC 8259) as answers need. */
    private static final class Json {
        private static final int DEEPEST = 64;
        private final String s;
        private int at;

        private Json(String s) {
            this.s = s;
        }

        /** The object that s is; empty if it is none. No error: it would quote the answer. */
        @SuppressWarnings("unchecked")
        static Map<String, Object> object(String s) {
            try {
                Json j = new Json(s);
                Object v = j.value(0);
                return v instanceof Map && j.skip() == 0 ? (Map<String, Object>) v : Map.of();
            } catch (IllegalArgumentException | IndexOutOfBoundsException e) {
                return Map.of();
            }
        }

        static String quoted(String s) {
            StringBuilder out = new StringBuilder("\"");
            for (char c : s.toCharArray()) {
                out.append(c < ' ' || c == '"' || c == '\\' || c > '~' ? String.format("\\u%04x", (int) c) : String.valueOf(c));
            }
            return out.append('"').toString();
        }

        private char skip() {
            while (at < s.length() && " \t\r\n".indexOf(s.charAt(at)) >= 0) {
                at++;
            }
            return at < s.length() ? s.charAt(at) : 0;
        }

        private boolean take(char c) {
            if (skip() != c) {
                return false;
            }
            at++;
            return true;
        }

        private void must(boolean ok) {
            if (!ok) {
                throw new IllegalArgumentException();
            }
        }

        private Object value(int depth) {
            must(depth < DEEPEST);
            switch (skip()) {
                case '{': {
                    Map<String, Object> out = new LinkedHashMap<>();
                    for (at++; !take('}'); must(skip() == '}' || take(','))) {
                        must(skip() == '"');
                        String name = string();
                        must(take(':'));
                        out.put(name, value(depth + 1));
                    }
                    return out;
                }
                case '[': {
                    List<Object> out = new ArrayList<>();
                    for (at++; !take(']'); must(skip() == ']' || take(','))) {
                        out.add(value(depth + 1));
                    }
                    return out;
                }
                case '"':
                    return string();
                default:
                    return word();
            }
        }

        private Object word() {
            int from = at;
            while (at < s.length() && "{}[],:\" \t\r\n".indexOf(s.charAt(at)) < 0) {
                at++;
            }
            String w = s.substring(from, at);
            switch (w) {
                case "true": return true;
                case "false": return false;
                case "null": return null;
                default: return Double.valueOf(w); // NumberFormatException is an IllegalArgumentException
            }
        }

        private String string() {
            StringBuilder out = new StringBuilder();
            for (at++; s.charAt(at) != '"'; at++) {
                char c = s.charAt(at);
                if (c == '\\') {
                    c = s.charAt(++at);
                    int i = "bfnrt".indexOf(c);
                    if (i >= 0) {
                        c = "\b\f\n\r\t".charAt(i);
                    } else if (c == 'u') {
                        c = (char) Integer.parseInt(s.substring(at + 1, at + 5), 16);
                        at += 4;
                    }
                }
                out.append(c);
            }
            at++;
            return out.toString();
        }
    }
}

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.Arrays;
import java.util.Map;
import java.util.stream.Collectors;

/** Does one thing with clients/CredentialBroker.java: Driver SECONDS ACTION CLIENT [URL]; says in JSON what came of it. */
public final class Driver {
    private Driver() { }

    public static void main(String[] args) throws Exception {
        String said;
        try {
            CredentialBroker broker = new CredentialBroker(CredentialBroker.defaultSocket(), Duration.ofSeconds(Long.parseLong(args[0])), Duration.ofSeconds(10));
            said = answer(broker, args);
            long[] times = new long[Integer.parseInt(System.getenv().getOrDefault("REPEAT", "0"))];
            for (int i = 0; i < times.length; i++) {
                long start = System.nanoTime();
                answer(broker, args);
                times[i] = System.nanoTime() - start;
            }
            Arrays.sort(times);
            if (times.length > 0) {
                said += ",\"micros\":" + times[times.length / 2] / 1000;
            }
        } catch (CredentialBroker.BrokerException e) {
            said = "\"code\":" + quoted(e.code) + ",\"detail\":" + quoted(e.detail) + ",\"retry_after\":" + e.retryAfter;
        }
        System.out.println("{" + said + "}");
    }

    private static String answer(CredentialBroker broker, String[] args) throws Exception {
        switch (args[1]) {
            case "token":
                return "\"token\":" + quoted((String) broker.token(args[2], Map.of("min_ttl", "30s")).get("access_token"));
            case "headers":
                return "\"headers\":{" + broker.headers(args[2], Map.of()).entrySet().stream()
                        .map(h -> quoted(h.getKey()) + ":" + quoted(h.getValue())).collect(Collectors.joining(",")) + "}";
            default:
                HttpRequest request = HttpRequest.newBuilder(URI.create(args[3])).POST(HttpRequest.BodyPublishers.ofString("{\"functie\":\"bakker\"}")).build();
                HttpResponse<String> a = broker.send(HttpClient.newHttpClient(), args[2], request, HttpResponse.BodyHandlers.ofString());
                return "\"status\":" + a.statusCode() + ",\"body\":" + quoted(a.body());
        }
    }

    private static String quoted(String s) {
        return '"' + s.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n") + '"';
    }
}

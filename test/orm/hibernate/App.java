// An application with Hibernate that saves whole rows of onesignal_message: see ORM.pm. Message, MessageId and Example
// are README's.

import java.time.Instant;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.UUID;
import java.util.function.Consumer;
import java.util.function.Function;
import javax.persistence.EntityManager;
import javax.persistence.EntityManagerFactory;
import org.hibernate.Session;
import org.hibernate.StatelessSession;
import org.hibernate.ejb.HibernateEntityManagerFactory;

public class App {
    // Each saves a whole row, or of it what differs from the row as it is now.
    static final List<Consumer<Message>> WAYS = List.of(
        copy -> inTransaction(em -> em.merge(copy)),
        copy -> inTransaction(em -> { em.unwrap(Session.class).update(copy); return copy; }),
        App::updateStateless,
        // An upsert of an object that was never read.
        copy -> inTransaction(em -> em.merge(made(copy.messageId, copy.appId, copy.reason))));

    static final Instant TOMORROW = Instant.now().plusSeconds(86400);

    static EntityManagerFactory factory;
    static List<UUID> ids = new ArrayList<>();

    static <T> T inTransaction(Function<EntityManager, T> work) {
        EntityManager em = factory.createEntityManager();
        try {
            em.getTransaction().begin();
            T result = work.apply(em);
            em.getTransaction().commit();
            return result;
        } finally {
            em.close();
        }
    }

    static void updateStateless(Message copy) {
        StatelessSession session = ((HibernateEntityManagerFactory) factory).getSessionFactory().openStatelessSession();
        try {
            session.beginTransaction();
            session.update(copy);
            session.getTransaction().commit();
        } finally {
            session.close();
        }
    }

    static Message made(UUID id, UUID app, String reason) {
        Message message = new Message();
        message.messageId = id;
        message.appId = app;
        message.sendAfter = TOMORROW;
        message.reason = reason;
        return message;
    }

    // New copies, which no EntityManager knows any more.
    static List<Message> read() {
        return inTransaction(em -> em.createQuery("select m from Message m where m.messageId in (:ids) order by m.messageId", Message.class)
            .setParameter("ids", ids).getResultList());
    }

    static void request(List<Message> copies) {
        for (int number = 0; number < copies.size(); number++) {
            Message copy = copies.get(number);
            copy.cancel = true;
            if (number % 2 == 0)
                inTransaction(em -> em.merge(copy));
            else
                inTransaction(em -> Example.cancel(em, copy.messageId));
        }
    }

    // Each with the next way.
    static void saveAll(List<Message> copies, String reason) {
        for (int number = 0; number < copies.size(); number++) {
            copies.get(number).reason = reason;
            WAYS.get(number % WAYS.size()).accept(copies.get(number));
        }
    }

    static void insert(UUID id, UUID app, int number) {
        Message message = made(id, app, null);
        if (number % 2 == 0)
            inTransaction(em -> { em.persist(message); return message; });
        else
            inTransaction(em -> Example.save(em, message));
    }

    public static void main(String[] arguments) throws Exception {
        factory = Hibernate3.connect(arguments[0], arguments[1], arguments[2], Message.class);
        UUID app = UUID.fromString(arguments[3]);
        for (int number = 4; number < arguments.length; number++) {
            ids.add(UUID.fromString(arguments[number]));
            insert(ids.get(number - 4), app, number);
        }
        List<Message> scheduled = read();
        request(read());
        List<Message> pending = read();
        if (!pending.stream().allMatch(copy -> copy.state.equals("pending")))
            throw new IllegalStateException("not all are pending");
        if (!inTransaction(Example::failed).isEmpty())
            throw new IllegalStateException("some have failed");
        saveAll(pending, "read while pending");
        saveAll(scheduled, "read before");
        System.out.println("pending");

        System.in.read();
        for (List<Message> copies : List.of(scheduled, pending, read())) {
            // once with each way
            for (int turn = 0; turn < WAYS.size(); turn++) {
                Collections.rotate(copies, -1);
                saveAll(copies, "saved");
            }
        }
        factory.close();
    }
}

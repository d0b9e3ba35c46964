// What Hibernate 3.6, which Debian has, must be taught so that README's entity runs as it is: the types UUID and Instant,
// and @DynamicUpdate. Hibernate 6 knows these.

import java.sql.Timestamp;
import java.time.Instant;
import javax.persistence.EntityManagerFactory;
import org.hibernate.annotations.DynamicUpdate;
import org.hibernate.cfg.Configuration;
import org.hibernate.ejb.Ejb3Configuration;
import org.hibernate.type.AbstractSingleColumnStandardBasicType;
import org.hibernate.type.PostgresUUIDType;
import org.hibernate.type.descriptor.WrapperOptions;
import org.hibernate.type.descriptor.java.AbstractTypeDescriptor;
import org.hibernate.type.descriptor.sql.TimestampTypeDescriptor;

class Hibernate3 {
    static EntityManagerFactory connect(String host, String port, String role, Class<?> entity) {
        Ejb3Configuration jpa = new Ejb3Configuration();
        Configuration hibernate = jpa.getHibernateConfiguration();
        hibernate.registerTypeOverride(new UuidType());
        hibernate.registerTypeOverride(new InstantType());
        jpa.addAnnotatedClass(entity);
        jpa.setProperty("hibernate.dialect", "org.hibernate.dialect.PostgreSQLDialect");
        jpa.setProperty("hibernate.hbm2ddl.auto", "none");
        jpa.setProperty("hibernate.connection.driver_class", "org.postgresql.Driver");
        jpa.setProperty("hibernate.connection.url", "jdbc:postgresql://localhost:" + port + "/postgres?socketFactory=UnixSocket$Factory"
            + "&socketFactoryArg=" + host + "/.s.PGSQL." + port);
        jpa.setProperty("hibernate.connection.username", role);
        jpa.buildMappings();
        hibernate.getClassMapping(entity.getName()).setDynamicUpdate(entity.isAnnotationPresent(DynamicUpdate.class));
        return jpa.buildEntityManagerFactory();
    }

    static class UuidType extends PostgresUUIDType {
        @Override protected boolean registerUnderJavaType() { return true; }
    }

    static class InstantType extends AbstractSingleColumnStandardBasicType<Instant> {
        InstantType() {
            super(TimestampTypeDescriptor.INSTANCE, new InstantDescriptor());
        }

        @Override public String getName() { return "instant"; }
        @Override protected boolean registerUnderJavaType() { return true; }
    }

    static class InstantDescriptor extends AbstractTypeDescriptor<Instant> {
        InstantDescriptor() {
            super(Instant.class);
        }

        @Override public String toString(Instant value) { return value.toString(); }
        @Override public Instant fromString(String text) { return Instant.parse(text); }
        @Override public <X> X unwrap(Instant value, Class<X> type, WrapperOptions options) {
            return value == null ? null : type.cast(Timestamp.from(value));
        }
        @Override public <X> Instant wrap(X value, WrapperOptions options) {
            return value == null ? null : ((Timestamp) value).toInstant();
        }
    }
}
